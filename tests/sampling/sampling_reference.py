"""Decoding in plain python: slow, one token at a time, no cache."""

import dataclasses
import functools
import math

import jax
import numpy as np
import tiny_models

EOS = 1
# Few tokens, so that EOS is drawn often; few layers, which compile fast.
CONFIG = dataclasses.replace(
  tiny_models.CONFIG,
  vocab_size=12,
  num_encoder_layers=1,
  num_decoder_layers=1,
)


@functools.partial(jax.jit, static_argnums=0)
def teacher_forced_logits(model, variables, prompts, responses):
  """Logits `[rows, length, vocab]` by one pass of the whole model."""
  inputs = jax.numpy.pad(responses, ((0, 0), (1, 0)))[:, :-1]
  return model.apply(variables, prompts, inputs)


def log_softmax(row):
  row = [float(x) for x in row]
  highest = max(row)
  total = sum(math.exp(x - highest) for x in row if x > -math.inf)
  return [x - highest - math.log(total) for x in row]


def warp(row, temperature, top_k, top_p):
  """Log-probabilities of one distribution, from its logits."""
  if temperature == 0:
    return log_softmax(row)
  row = [float(x) / temperature for x in row]
  order = sorted(range(len(row)), key=lambda token: -row[token])
  if top_k is not None:
    order = order[:top_k]
  logprobs = log_softmax([row[token] for token in order])
  kept, reached = [], 0.0
  for token, logprob in zip(order, logprobs, strict=True):
    kept.append(token)
    reached += math.exp(logprob)
    if reached >= top_p:
      break
  logprobs = log_softmax([row[token] for token in kept])
  warped = [-math.inf] * len(row)
  for token, logprob in zip(kept, logprobs, strict=True):
    warped[token] = logprob
  return warped


class Slow:
  """A model that is run on all that was written for every token."""

  def __init__(self, model, variables, length):
    self._model = model
    self._variables = variables
    self._length = length
    self._known = {}

  def logprobs(self, prompt, response):
    """Log-probabilities of the token after `response`, of one prompt."""
    key = prompt.tokens.tobytes(), prompt.mask.tobytes(), tuple(response)
    if key not in self._known:
      self._known[key] = self._compute(prompt, response)
    return self._known[key]

  def _compute(self, prompt, response):
    # Padded to one length, or each would be compiled; the decoder is causal.
    padded = np.zeros((1, self._length), np.int32)
    padded[0, : len(response)] = response
    logits = teacher_forced_logits(self._model, self._variables, prompt, padded)
    return log_softmax(np.asarray(logits)[0, len(response)])

  def greedy(self, prompt):
    response = []
    while len(response) < self._length and EOS not in response:
      logprobs = self.logprobs(prompt, response)
      response.append(max(range(len(logprobs)), key=logprobs.__getitem__))
    return response

  def beam_search(self, prompt, num_beams, length_penalty):
    """The best response, its score, and the steps that were made."""
    running, finished = [((), 0.0)], []
    for length in range(1, self._length + 1):
      candidates = []
      for response, total in running:
        for token, logprob in enumerate(self.logprobs(prompt, response)):
          candidates.append(((*response, token), total + logprob))
      candidates.sort(key=lambda candidate: -candidate[1])
      for response, total in candidates[:num_beams]:
        if response[-1] == EOS or length == self._length:
          finished.append((list(response), total / length**length_penalty))
      finished.sort(key=lambda hypothesis: -hypothesis[1])
      del finished[num_beams:]
      open_ones = [c for c in candidates[: 2 * num_beams] if c[0][-1] != EOS]
      running = open_ones[:num_beams]
      best_possible = running[0][1] / length**length_penalty
      if len(finished) == num_beams and best_possible <= finished[-1][1]:
        break
    return *finished[0], length
