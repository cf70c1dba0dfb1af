"""Samples of responses and their log-probabilities, by a compiled loop.

The encoder runs once a prompt, the keys and values of a prompt are computed
once for all its responses, and the loop ends as soon as every response has.
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
  """How responses are drawn.

  Attributes:
    max_length: tokens of a response at most, EOS included.
    temperature: of the softmax; 0 takes the most probable token each time,
      whatever `top_k` and `top_p` are.
    top_k: how many of the most probable tokens are kept; None keeps all.
    top_p: probability that the kept tokens must reach; 1 keeps all.
    num_samples: responses of each prompt.
    parts: equal parts in which a batch is sampled, one after the other. There
      is then room for the keys and values of one part alone; the samples are
      the same.
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
    """Temperature of the distribution that `Samples.logprobs` are of.

    Which one greedy decoding would have sampled from is a convention: the
    model's own.
    """
    return self.temperature or 1.0


@struct.dataclass
class Samples:
  """Responses of each prompt.

  Attributes:
    tokens: int32 `[batch, responses, length]`; 0 after EOS.
    mask: bool `[batch, responses, length]`, True up to EOS, EOS included. A
      response that ran out of room is True everywhere and has no EOS.
    logprobs: float32 `[batch, responses, length]`, in nats, of each token in
      the distribution that it was drawn from; 0 after EOS. At temperature 0
      they are those of the model's own distribution, at temperature 1.
    num_steps: int32 scalar, steps of the decoder that were run, those of all
      parts.
  """

  tokens: typing.PyTree
  mask: typing.PyTree
  logprobs: typing.PyTree
  num_steps: typing.PyTree


@struct.dataclass
class DecodeState:
  """What the loop carries. `rows` are the responses of all prompts.

  Attributes:
    index: int32 scalar, the position that is filled next.
    tokens: int32 `[rows, length]`, 0 from `index` on and after EOS.
    logprobs: float32 `[rows, length]`, likewise.
    ended: bool `[rows]`, which responses have their EOS.
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

  The randomness of a token depends on its prompt's key, on the number of the
  sample and on the position, and on nothing else: a response stays the same
  in another batch, at another place in it, among more samples, and with more
  room. Compile it with `jax.jit`, `model` and `config` closed over.

  Args:
    model: the policy.
    variables: its `params`, and `lora` if adapted.
    prompts: the prompts, or their encoding by the policy.
    keys: random keys, one a prompt.
    config: how to draw; `config.parts` divides the batch.
    early_stop: whether to stop once every response of a part has ended. The
      samples are the same either way.

  Returns:
    `config.num_samples` responses a prompt, `config.max_length` long.
  """
  draw_part = functools.partial(
    _sample_part, model, variables, config, early_stop=early_stop
  )
  if config.parts == 1:
    return draw_part(prompts, keys)

  def split(x):
    # Every device keeps its own rows: part i takes rows i, i + parts, ….
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
  """Draws the responses of a part of a batch."""
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
  # The first step makes the cache, which the loop cannot: it would change the
  # structure of what is carried.
  state = jax.lax.while_loop(goes_on, step, step(state))
  shape = (batch, num_samples, length)
  return Samples(
    tokens=state.tokens.reshape(shape),
    mask=masking.mask_after_eos(state.tokens).reshape(shape),
    logprobs=state.logprobs.reshape(shape),
    num_steps=state.index,
  )
