"""Keys and values kept between the steps of decoding.

The decoder's attentions hold them in the Linen collection `cache`: those of
the response grow by one position a step, and there is a row of them for each
response; those of the prompt are computed once, and there is one row of them a
prompt, however many responses it gets.

They lie as `[rows, heads, head_dim, length]`, as T5X has them, and `attend`
reads them so: the products of one query with all keys take them as they are,
where with `length` second each step would first transpose the whole cache.
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
  """Where in the response decoding is.

  Attributes:
    index: int32 scalar, the position of the one token that is decoded.
    length: the positions for which the caches have room.
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
  """Writes a response's newest keys (or values) and returns all of them.

  Args:
    module: the attention that holds the cache.
    name: 'key' or 'value'.
    x: `[rows, 1, heads, head_dim]`, of the token at `position`.
    position: where to write. A cache of zeros is made where there is none.

  Returns:
    `[rows, heads, head_dim, length]`; zeros where nothing was written yet.
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
  """Returns a prompt's keys (or values), which are made on the first call."""

  def stored():
    return nn.with_logical_constraint(jnp.moveaxis(make(), 1, -1), _AXES)

  return module.variable('cache', _PROMPT + name, stored).value


def take_rows(
  cache: typing.Params, rows: Int[typing.Array, ' new_rows']
) -> typing.Params:
  """Lets each response go on from another one of its prompt, as beams do.

  Args:
    cache: the collection `cache`.
    rows: int32 `[rows]`, the response that each one goes on from. Caches of
      prompts stay as they are.

  Returns:
    The collection of the new responses.
  """

  def take(path, leaf):
    if not path.rpartition('/')[-1].startswith(_RESPONSE):
      return leaf
    # Counted from behind, because scanned layers have an axis in front.
    return jnp.take(leaf, rows, axis=-4)

  flat = tree_paths.flatten(cache)
  return tree_paths.unflatten({p: take(p, leaf) for p, leaf in flat.items()})
