"""Beam search.

A beam holds hypotheses that have ended and open ones alike, ranked by the
same score: the sum of log-probabilities over length**length_penalty. At every
step an open hypothesis competes with all its continuations, an ended one as
it is. One beam is therefore greedy decoding, and enough beams search
everything.
"""

import dataclasses
from typing import Annotated

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

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
  """How to search.

  Attributes:
    num_beams: hypotheses of each prompt.
    max_length: tokens of a response at most, EOS included.
    length_penalty: exponent of the length (EOS included) that divides the sum
      of log-probabilities: 0 ranks by probability, which favours short
      responses, 1 by the mean per token, and more favours long ones.
  """

  num_beams: Annotated[int, checks.AtLeastOne]
  max_length: Annotated[int, checks.AtLeastOne]
  length_penalty: Annotated[float, checks.NotNegative] = 1.0

  def __post_init__(self):
    checks.check_fields(self)


@struct.dataclass
class BeamState:
  """What the loop carries. `rows` are the hypotheses of all prompts.

  Attributes:
    index: int32 scalar, the position that is filled next.
    tokens: int32 `[rows, length]`, 0 from `index` on and after EOS.
    logprobs: float32 `[rows, length]`, likewise.
    sums: float32 `[rows]`, of `logprobs`; -inf where a row is no hypothesis.
    lengths: int32 `[rows]`, tokens so far, EOS included.
    ended: bool `[rows]`, which hypotheses have their EOS.
    cache: the model's collection `cache`; empty before the first step.
  """

  index: typing.PyTree
  tokens: typing.PyTree
  logprobs: typing.PyTree
  sums: typing.PyTree
  lengths: typing.PyTree
  ended: typing.PyTree
  cache: typing.PyTree


def beam_search(
  model: t5.T5,
  variables: decoding.Variables,
  prompts: prompts_lib.Prompts,
  config: BeamConfig,
) -> tuple[sampler.Samples, Float[jax.Array, ' batch']]:
  """Searches for the response of each prompt with the highest score.

  A prompt is done when none of its open hypotheses can overtake the best ended
  one, which leaves the result as it would be at `max_length`; there, open
  hypotheses count as they are. Compile it with `jax.jit`, `model` and `config`
  closed over.

  Args:
    model: the policy.
    variables: its `params`, and `lora` if adapted.
    prompts: the prompts.
    config: how to search.

  Returns:
    The best response of each prompt, `[batch, 1, max_length]`, with
    log-probabilities of the model's own distribution, and the scores of the
    responses, float32 `[batch]`.
  """
  batch, num_beams = len(prompts), config.num_beams
  rows, length = batch * num_beams, config.max_length
  vocab_size = model.config.vocab_size
  first_rows = num_beams * jnp.arange(batch, dtype=jnp.int32)[:, None]
  encoded = model.apply(variables, prompts, method='encode')

  def score(sums, lengths):
    return sums / jnp.asarray(lengths, jnp.float32) ** config.length_penalty

  def step(state: BeamState) -> BeamState:
    logits, cache = decoding.next_logits(
      model,
      variables,
      encoded,
      state.tokens,
      state.index,
      state.cache,
    )
    # What has ended has one continuation, a padding token that costs nothing.
    stays = jnp.where(jnp.arange(vocab_size) == 0, 0.0, -jnp.inf)
    logprobs = jnp.where(
      state.ended[:, None], stays, jax.nn.log_softmax(logits)
    )
    sums = state.sums[:, None] + logprobs
    lengths = state.lengths + ~state.ended
    scores = score(sums, lengths[:, None]).reshape(batch, -1)
    _, chosen = jax.lax.top_k(scores, num_beams)
    parents = (first_rows + chosen // vocab_size).reshape(rows)
    tokens = (chosen % vocab_size).reshape(rows)

    def write(history, values):
      return jax.lax.dynamic_update_slice_in_dim(
        history[parents], values[:, None], state.index, axis=1
      )

    return BeamState(
      index=state.index + 1,
      tokens=write(state.tokens, tokens),
      logprobs=write(state.logprobs, logprobs[parents, tokens]),
      sums=sums[parents, tokens],
      lengths=lengths[parents],
      ended=state.ended[parents] | (tokens == decoding.EOS_ID),
      cache=kv_cache.take_rows(cache, parents),
    )

  def best(scores, counts):
    scores = jnp.where(counts, scores, -jnp.inf).reshape(batch, num_beams)
    return jnp.max(scores, axis=1), jnp.argmax(scores, axis=1)

  def goes_on(state: BeamState) -> Bool[jax.Array, '']:
    ended, _ = best(score(state.sums, state.lengths), state.ended)
    # No sum can grow, and no length beyond the longest.
    in_reach, _ = best(score(state.sums, length), ~state.ended)
    return (state.index < length) & jnp.any(ended < in_reach)

  # All beams begin alike: one of them is a hypothesis.
  is_first = jnp.arange(rows) % num_beams == 0
  state = BeamState(
    index=jnp.zeros((), jnp.int32),
    tokens=jnp.zeros((rows, length), jnp.int32),
    logprobs=jnp.zeros((rows, length), jnp.float32),
    sums=jnp.where(is_first, 0.0, -jnp.inf),
    lengths=jnp.zeros((rows,), jnp.int32),
    ended=jnp.zeros((rows,), bool),
    cache={},
  )
  # The first step makes the cache, before the structure is carried.
  state = jax.lax.while_loop(goes_on, step, step(state))
  scores, beams = best(
    score(state.sums, state.lengths), state.ended | (state.index == length)
  )
  beams = first_rows + beams[:, None]
  tokens = state.tokens[beams]
  samples = sampler.Samples(
    tokens=tokens,
    mask=masking.mask_after_eos(tokens[:, 0])[:, None],
    logprobs=state.logprobs[beams],
    num_steps=state.index,
  )
  return samples, scores
