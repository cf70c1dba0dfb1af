"""One decoding step, shared by the sampler and beam search."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from perlhf_jax.core import typing
from perlhf_jax.models import kv_cache
from perlhf_jax.models import prompts
from perlhf_jax.models import t5

EOS_ID = 1
Variables = Mapping[str, Any]


def next_logits(
  model: t5.T5,
  variables: Variables,
  encoded: prompts.Encoded,
  tokens: Int[typing.Array, 'rows length'],
  index: Int[typing.Array, ''],
  cache: typing.Params,
) -> tuple[Float[jax.Array, 'rows vocab'], typing.Params]:
  """Runs one step of the decoder.

  Args:
    model: the policy.
    variables: its `params`, and `lora` if adapted.
    encoded: encoded prompts.
    tokens: the responses so far, filled before `index`.
    index: the position whose logits are computed.
    cache: cache of the previous step; empty at `index` 0.

  Returns:
    float32 logits of the token at `index`, and the next cache.
  """
  last = jax.lax.dynamic_slice_in_dim(tokens, index - 1, 1, axis=1)
  # The decoder's start token is 0.
  last = jnp.where(index == 0, 0, last)
  position = kv_cache.CachePosition(index, tokens.shape[1])

  def decode(model):
    hidden = model.decode_one(encoded, last, position)
    return model.logits(hidden)[:, 0]

  collections = {**variables, 'cache': cache} if cache else variables
  logits, updated = model.apply(collections, method=decode, mutable=['cache'])
  return logits, updated['cache']
