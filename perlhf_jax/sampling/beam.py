"""Beam search that returns the same responses as `transformers`.

The beams hold only open hypotheses, ranked by the sum of their
log-probabilities. A hypothesis that ends moves to a list of the best ended
ones, ranked by that sum divided by length**length_penalty. Ended hypotheses use
no beams, so `num_beams` open hypotheses always continue.

The algorithm follows `generate(num_beams=k, do_sample=False)` of transformers
5.24 (`GenerationMixin._beam_search` in generation/utils.py), with its default
`early_stopping=False`. Ties, which torch leaves undefined, are broken by the
better beam, then the lower token, then the older hypothesis.
"""

import dataclasses
from typing import Annotated

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.models import kv_cache
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.sampling import decoding
from perlhf_jax.sampling import sampler


@dataclasses.dataclass(frozen=True)
class BeamConfig:
  """Settings of beam search.

  Attributes:
    num_beams: hypotheses per prompt.
    max_length: maximum number of tokens in a response, EOS included.
    length_penalty: exponent p; a score is the sum of log-probabilities divided
      by length**p, EOS included. 0 ranks by probability, which favors short
      responses; 1 ranks by the mean per token; larger values favor long ones.
  """

  num_beams: Annotated[int, checks.AtLeastOne]
  max_length: Annotated[int, checks.AtLeastOne]
  length_penalty: Annotated[float, checks.NotNegative] = 1.0

  def __post_init__(self):
    checks.check_fields(self)


@struct.dataclass
class BeamState:
  """The loop state.

  Attributes:
    index: int32 scalar, the next position to fill.
    tokens: int32 `[batch, beams, length]`, tokens of open hypotheses; 0 from
      `index` on.
    logprobs: float32 `[batch, beams, length]`, their log-probabilities; 0 from
      `index` on.
    sums: float32 `[batch, beams]`, sums of `logprobs`, highest first; -inf for
      a beam without a hypothesis.
    scores: float32 `[batch, beams]`, scores of the best ended hypotheses,
      highest first; -inf for an empty entry.
    best_tokens: int32 `[batch, length]`, the best ended hypothesis; 0 after
      EOS.
    best_logprobs: float32 `[batch, length]`, its log-probabilities.
    done: bool `[batch]`, True if no more hypotheses of a prompt may end.
    cache: the model's collection `cache`, one row per open hypothesis; empty
      before the first step.
  """

  index: typing.PyTree
  tokens: typing.PyTree
  logprobs: typing.PyTree
  sums: typing.PyTree
  scores: typing.PyTree
  best_tokens: typing.PyTree
  best_logprobs: typing.PyTree
  done: typing.PyTree
  cache: typing.PyTree


def beam_search(
  model: t5.T5,
  variables: decoding.Variables,
  prompts: prompts_lib.Prompts,
  config: BeamConfig,
) -> tuple[sampler.Samples, Float[jax.Array, ' batch']]:
  """Searches for the response to each prompt with the highest score.

  Each step takes the 2 * num_beams likeliest continuations of a prompt's open
  hypotheses. Those among the first num_beams that end can enter the list of the
  num_beams best ended hypotheses. The likeliest num_beams without EOS are the
  next open hypotheses. At `max_length` the first num_beams count as ended.

  A prompt is done when its list is full and the likeliest open hypothesis, if
  it ended at its current length, would not beat the last one of the list. If
  `length_penalty` is above 0, a longer response could still have had a higher
  score. The loop ends when all prompts are done, which changes no response.
  Compile it with `jax.jit`, with `model` and `config` closed over.

  Args:
    model: the policy.
    variables: its `params`, and `lora` if adapted.
    prompts: the prompts.
    config: settings of the search.

  Returns:
    The best response to each prompt, `[batch, 1, max_length]`, with
    log-probabilities of the model's own distribution; and the scores of the
    responses, float32 `[batch]`.
  """
  batch, num_beams = len(prompts), config.num_beams
  rows, length = batch * num_beams, config.max_length
  vocab_size = model.config.vocab_size
  first_rows = num_beams * jnp.arange(batch, dtype=jnp.int32)[:, None]
  # For lengths 1, 2, …; computed in float64, as in transformers.
  divisors = np.arange(1, length + 1) ** float(config.length_penalty)
  divisors = jnp.asarray(divisors, jnp.float32)
  encoded = model.apply(variables, prompts, method='encode')

  def step(state: BeamState) -> BeamState:
    logits, cache = decoding.next_logits(
      model,
      variables,
      encoded,
      state.tokens.reshape(rows, length),
      state.index,
      state.cache,
    )
    logprobs = jax.nn.log_softmax(logits).reshape(batch, num_beams, vocab_size)
    sums = (state.sums[:, :, None] + logprobs).reshape(batch, -1)
    # Without the barrier, XLA for CPUs merges the slices below with the slice
    # of the top_k, no longer recognizes it, and sorts the whole vocabulary.
    sums, chosen = jax.lax.optimization_barrier(
      jax.lax.top_k(sums, 2 * num_beams)
    )
    parents, tokens = chosen // vocab_size, chosen % vocab_size
    logprobs = _take(logprobs.reshape(batch, -1), chosen)

    def continue_with(order):
      """Returns tokens and logprobs of the candidates `order` [batch, n]."""

      def write(history, values):
        return jax.lax.dynamic_update_slice_in_dim(
          _take(history, _take(parents, order)),
          _take(values, order)[:, :, None],
          state.index,
          axis=2,
        )

      return write(state.tokens, tokens), write(state.logprobs, logprobs)

    divisor = divisors[state.index]
    ends = (tokens == decoding.EOS_ID) | (state.index + 1 == length)
    may_end = ends[:, :num_beams] & ~state.done[:, None]
    ended = jnp.where(may_end, sums[:, :num_beams] / divisor, -jnp.inf)
    scores, _ = jax.lax.top_k(
      jnp.concatenate([state.scores, ended], axis=1), num_beams
    )
    best = jnp.argmax(ended, axis=1, keepdims=True)
    is_better = _take(ended, best) > state.scores[:, :1]
    best_tokens, best_logprobs = continue_with(best)

    sums, order = jax.lax.top_k(
      jnp.where(tokens == decoding.EOS_ID, -jnp.inf, sums), num_beams
    )
    open_tokens, open_logprobs = continue_with(order)
    parents = (first_rows + _take(parents, order)).reshape(rows)
    return BeamState(
      index=state.index + 1,
      tokens=open_tokens,
      logprobs=open_logprobs,
      sums=sums,
      scores=scores,
      best_tokens=jnp.where(is_better, best_tokens[:, 0], state.best_tokens),
      best_logprobs=jnp.where(
        is_better, best_logprobs[:, 0], state.best_logprobs
      ),
      done=state.done | (sums[:, 0] / divisor <= scores[:, -1]),
      cache=kv_cache.take_rows(cache, parents),
    )

  def goes_on(state: BeamState) -> Bool[jax.Array, '']:
    return (state.index < length) & ~jnp.all(state.done)

  # All beams begin equal, so only the first counts as a hypothesis.
  is_first = jnp.arange(num_beams) == 0
  state = BeamState(
    index=jnp.zeros((), jnp.int32),
    tokens=jnp.zeros((batch, num_beams, length), jnp.int32),
    logprobs=jnp.zeros((batch, num_beams, length), jnp.float32),
    sums=jnp.tile(jnp.where(is_first, 0.0, -jnp.inf), (batch, 1)),
    scores=jnp.full((batch, num_beams), -jnp.inf),
    best_tokens=jnp.zeros((batch, length), jnp.int32),
    best_logprobs=jnp.zeros((batch, length), jnp.float32),
    done=jnp.zeros((batch,), bool),
    cache={},
  )
  # The first step, outside the loop, makes the cache: the structure of the loop
  # state must not change.
  state = jax.lax.while_loop(goes_on, step, step(state))
  samples = sampler.Samples(
    tokens=state.best_tokens[:, None],
    mask=masking.mask_after_eos(state.best_tokens)[:, None],
    logprobs=state.best_logprobs[:, None],
    num_steps=state.index,
  )
  return samples, state.scores[:, 0]


def _take(
  x: Shaped[jax.Array, 'batch rows *rest'],
  indices: Int[jax.Array, 'batch picked'],
) -> Shaped[jax.Array, 'batch picked *rest']:
  """Picks rows of each prompt."""
  indices = indices.reshape(*indices.shape, *(1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, indices, axis=1)
