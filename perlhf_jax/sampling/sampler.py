"""Samples responses with their log-probabilities, in a compiled loop.

The encoder runs once per prompt, all responses of a prompt share its keys and
values, and the loop ends as soon as every response has ended.
"""

import dataclasses
import functools
from typing import Annotated

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Key

from perlhf_jax.core import checks
from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.sampling import decoding
from perlhf_jax.sampling import warping


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Settings of sampling.

  Attributes:
    max_length: maximum number of tokens in a response, EOS included.
    temperature: temperature of the softmax; 0 always takes the most probable
      token and ignores `top_k` and `top_p`.
    top_k: number of most probable tokens to keep; None keeps all.
    top_p: total probability that the kept tokens must reach; 1 keeps all.
    num_samples: responses per prompt.
    parts: number of equal parts of a batch that are sampled one after another.
      The KV cache holds only one part at a time; the samples are the same.
  """

  max_length: Annotated[int, checks.AtLeastOne]
  temperature: Annotated[float, checks.NotNegative] = 1.0
  top_k: Annotated[int | None, checks.AtLeastOne] = None
  top_p: Annotated[float, checks.Range(above=0, most=1)] = 1.0
  num_samples: Annotated[int, checks.AtLeastOne] = 1
  parts: Annotated[int, checks.AtLeastOne] = 1

  def __post_init__(self):
    checks.check_fields(self)

  @property
  def logprob_temperature(self) -> float:
    """Temperature of the distribution that `Samples.logprobs` refer to.

    For greedy decoding it is 1, the model's own distribution, by convention.
    """
    return self.temperature or 1.0


@struct.dataclass
class Samples:
  """Responses of each prompt.

  Attributes:
    tokens: int32 `[batch, responses, length]`; 0 after EOS.
    mask: bool `[batch, responses, length]`, True up to EOS, EOS included. It
      is True everywhere for a response that reached `max_length` without EOS.
    logprobs: float32 `[batch, responses, length]`, log-probability in nats of
      each token in the distribution that it was drawn from; 0 after EOS. For
      temperature 0, in the model's own distribution (temperature 1).
    num_steps: int32 scalar, number of decoder steps, summed over parts.
  """

  tokens: typing.PyTree
  mask: typing.PyTree
  logprobs: typing.PyTree
  num_steps: typing.PyTree


@struct.dataclass
class DecodeState:
  """The loop state. `rows` are the responses of all prompts.

  Attributes:
    index: int32 scalar, the next position to fill.
    tokens: int32 `[rows, length]`, 0 from `index` on and after EOS.
    logprobs: float32 `[rows, length]`, 0 in the same places.
    ended: bool `[rows]`, True for responses that have an EOS.
    cache: the model's collection `cache`; empty before the first step.
  """

  index: typing.PyTree
  tokens: typing.PyTree
  logprobs: typing.PyTree
  ended: typing.PyTree
  cache: typing.PyTree


def _draw(keys, index, logprobs):
  def draw(key, row):
    return jax.random.categorical(jax.random.fold_in(key, index), row)

  return jax.vmap(draw)(keys, logprobs)


def sample(
  model: t5.T5,
  variables: decoding.Variables,
  prompts: prompts_lib.MaybeEncoded,
  keys: Key[jax.Array, ' batch'],
  config: SamplingConfig,
  *,
  early_stop: bool = True,
) -> Samples:
  """Draws responses, token by token, without dropout.

  The randomness of a token depends only on its prompt's key, the index of the
  sample and the position. So a response does not change with the batch, its
  place in the batch, `num_samples` or `max_length`. Compile it with `jax.jit`,
  with `model` and `config` closed over.

  Args:
    model: the policy.
    variables: its `params`, and `lora` if adapted.
    prompts: the prompts, or their encoding by the policy.
    keys: random keys, one per prompt.
    config: settings of sampling; `config.parts` must divide the batch.
    early_stop: whether to stop once every response of a part has ended. The
      samples are the same either way.

  Returns:
    `config.num_samples` responses per prompt, `config.max_length` long.
  """
  draw_part = functools.partial(
    _sample_part, model, variables, config, early_stop=early_stop
  )
  if config.parts == 1:
    return draw_part(prompts, keys)

  def split(x):
    # Part i takes rows i, i + parts, …, so that rows stay on their device.
    return jnp.swapaxes(x.reshape(-1, config.parts, *x.shape[1:]), 0, 1)

  def join(x):
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

  drawn = jax.lax.map(
    lambda part: draw_part(*part), jax.tree.map(split, (prompts, keys))
  )
  return Samples(
    tokens=join(drawn.tokens),
    mask=join(drawn.mask),
    logprobs=join(drawn.logprobs),
    num_steps=jnp.sum(drawn.num_steps),
  )


def _sample_part(
  model, variables, config, prompts, keys, *, early_stop
) -> Samples:
  """Draws the responses to one part of a batch."""
  batch, num_samples = len(prompts), config.num_samples
  rows, length = batch * num_samples, config.max_length
  encoded = model.apply(variables, prompts, method='encode')
  fold_each = jax.vmap(jax.random.fold_in, (None, 0))
  row_keys = jax.vmap(fold_each, (0, None))(keys, jnp.arange(num_samples))
  row_keys = row_keys.reshape(rows)

  def step(state: DecodeState) -> DecodeState:
    logits, cache = decoding.next_logits(
      model,
      variables,
      encoded,
      state.tokens,
      state.index,
      state.cache,
    )
    logprobs = warping.warp_logits(
      logits, config.temperature, config.top_k, config.top_p
    )
    if config.temperature == 0:
      tokens = jnp.argmax(logits, axis=-1)
    else:
      tokens = _draw(row_keys, state.index, logprobs)
    tokens = tokens.astype(jnp.int32)[:, None]
    logprobs = jnp.take_along_axis(logprobs, tokens, axis=-1)
    ended = state.ended[:, None]
    write = functools.partial(
      jax.lax.dynamic_update_slice_in_dim, start_index=state.index, axis=1
    )
    return DecodeState(
      index=state.index + 1,
      tokens=write(state.tokens, jnp.where(ended, 0, tokens)),
      logprobs=write(state.logprobs, jnp.where(ended, 0.0, logprobs)),
      ended=state.ended | (tokens[:, 0] == decoding.EOS_ID),
      cache=cache,
    )

  def goes_on(state: DecodeState) -> Bool[jax.Array, '']:
    has_room = state.index < length
    return has_room & ~jnp.all(state.ended) if early_stop else has_room

  state = DecodeState(
    index=jnp.zeros((), jnp.int32),
    tokens=jnp.zeros((rows, length), jnp.int32),
    logprobs=jnp.zeros((rows, length), jnp.float32),
    ended=jnp.zeros((rows,), bool),
    cache={},
  )
  # The first step, outside the loop, makes the cache: the structure of the loop
  # state must not change.
  state = jax.lax.while_loop(goes_on, step, step(state))
  shape = (batch, num_samples, length)
  return Samples(
    tokens=state.tokens.reshape(shape),
    mask=masking.mask_after_eos(state.tokens).reshape(shape),
    logprobs=state.logprobs.reshape(shape),
    num_steps=state.index,
  )
