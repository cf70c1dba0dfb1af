"""The KV cache: keys and values kept between decoding steps.

The decoder's attention layers hold them in the Linen collection `cache`. The
cache of responses has one row per response and grows by one position per step.
The cache of prompts is computed once and has one row per prompt, which all
responses of the prompt share.

The layout is `[rows, heads, head_dim, length]`, as in T5X. `attend` multiplies
a query with all keys in this layout; with `length` second, each step would
first transpose the whole cache.
"""

from collections.abc import Callable

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing

_AXES = ('batch', 'heads', 'kv', 'length')
_RESPONSE = 'response_'
_PROMPT = 'prompt_'


@struct.dataclass
class CachePosition:
  """The current decoding position in the response.

  Attributes:
    index: int32 scalar, the position of the token that is decoded.
    length: number of positions for which the caches have room.
  """

  index: typing.PyTree
  length: int = struct.field(pytree_node=False)

  def valid_keys(self) -> Bool[jax.Array, ' length']:
    """Returns which positions hold keys: those up to `index`."""
    return jnp.arange(self.length, dtype=jnp.int32) <= self.index


def append(
  module: nn.Module,
  name: str,
  x: Float[jax.Array, 'rows 1 heads head_dim'],
  position: CachePosition,
) -> Float[jax.Array, 'rows heads head_dim length']:
  """Appends one token's keys (or values) to the response cache.

  Args:
    module: the attention layer that holds the cache.
    name: 'key' or 'value'.
    x: `[rows, 1, heads, head_dim]`, of the token at `position`.
    position: where to write; the first call makes a cache of zeros.

  Returns:
    The cache `[rows, heads, head_dim, length]`, zero where not yet written.
  """
  x = jnp.moveaxis(x, 1, -1)
  shape = (*x.shape[:-1], position.length)
  cache = module.variable(
    'cache', _RESPONSE + name, lambda: jnp.zeros(shape, x.dtype)
  )
  cache.value = nn.with_logical_constraint(
    jax.lax.dynamic_update_slice_in_dim(cache.value, x, position.index, -1),
    _AXES,
  )
  return cache.value


def keep(
  module: nn.Module,
  name: str,
  make: Callable[[], Float[jax.Array, 'batch length heads head_dim']],
) -> Float[jax.Array, 'batch heads head_dim length']:
  """Returns the prompts' keys (or values), which the first call computes."""

  def stored():
    return nn.with_logical_constraint(jnp.moveaxis(make(), 1, -1), _AXES)

  return module.variable('cache', _PROMPT + name, stored).value


def take_rows(
  cache: typing.Params, rows: Int[typing.Array, ' new_rows']
) -> typing.Params:
  """Reorders the response caches, as beam search does with its beams.

  Args:
    cache: the collection `cache`; caches of prompts stay as they are.
    rows: int32 `[rows]`, for each new row the old row that it continues.

  Returns:
    The collection `cache` of the new rows.
  """

  def take(path, leaf):
    if not path.rpartition('/')[-1].startswith(_RESPONSE):
      return leaf
    # A negative axis, because scanned layers have an axis in front.
    return jnp.take(leaf, rows, axis=-4)

  flat = tree_paths.flatten(cache)
  return tree_paths.unflatten({p: take(p, leaf) for p, leaf in flat.items()})
