"""Decoding in plain python: slow, one token at a time, nothing kept."""

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
  """A model that is run anew, on all that was written, for every token."""

  def __init__(self, model, variables, length):
    self._model = model
    self._variables = variables
    self._length = length

  def logprobs(self, prompt, response):
    """Log-probabilities of the token after `response`, of one prompt."""
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
    """The best response and its score; every step to the last is made."""

    def score(hypothesis):
      response, total = hypothesis
      return total / len(response) ** length_penalty

    beam = [([], 0.0)]
    for _ in range(self._length):
      candidates = []
      for response, total in beam:
        if EOS in response:
          candidates.append((response, total))
          continue
        logprobs = self.logprobs(prompt, response)
        for token, logprob in enumerate(logprobs):
          candidates.append(([*response, token], total + logprob))
      beam = sorted(candidates, key=score, reverse=True)[:num_beams]
    return beam[0][0], score(beam[0])
