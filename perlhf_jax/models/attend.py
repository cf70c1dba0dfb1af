"""Softmax attention, for all queries at once or in blocks of queries."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import typing
from perlhf_jax.models import device_share

# Limit for the float32 attention weights of one layer on one device. Above it,
# queries are processed in blocks whose weights have about this size.
WEIGHTS_BYTES = 128 * 2**20
# Smaller blocks would make narrow matrix products.
_LEAST_BLOCK = 64
_FLOAT32 = 4


def attend(
  query: Float[typing.Array, 'batch query_length heads head_dim'],
  key: Float[typing.Array, 'batch _ _ _'],
  value: Float[typing.Array, 'batch _ _ _'],
  drop: Callable[[jax.Array], jax.Array],
  *,
  mask_bias: Float[typing.Array, '_ _ _ key_length'] | None = None,
  distance_bias: Float[typing.Array, 'heads distances'] | None = None,
  keys_last: bool = False,
  block: int | None = None,
) -> Float[jax.Array, 'batch query_length heads head_dim']:
  """Attends from each query to all keys.

  The weights, `[batch, heads, query_length, key_length]` in float32, are the
  largest array of a model that reads long prompts. With blocks, only the
  weights of `block` queries exist at a time; the backward pass recomputes
  them. The result is the same.

  Args:
    query: `[batch, query_length, heads, head_dim]`.
    key: `[batch, key_length, heads, head_dim]`.
    value: `[batch, key_length, heads, head_dim]`.
    drop: applies dropout to the weights, the same for every query.
    mask_bias: float32, added to the logits; broadcastable to
      `[batch, heads, query_length, key_length]`.
    distance_bias: float32 `[heads, query_length + key_length - 1]`, added after
      `mask_bias`; ordered by key position minus query position, ascending.
    keys_last: whether `key` and `value` have the layout of `kv_cache`,
      `[batch, heads, head_dim, key_length]`.
    block: maximum number of queries per block; None to choose it from the
      shapes.

  Returns:
    `[batch, query_length, heads, head_dim]`.
  """
  batch, length, *head = query.shape
  laid_out, axis = ('bhdk', 3) if keys_last else ('bkhd', 1)
  keys = key.shape[axis]

  def rows(query, mask_bias, distance_bias):
    logits = jnp.einsum(
      f'bqhd,{laid_out}->bhqk', query, key, preferred_element_type=jnp.float32
    )
    if mask_bias is not None:
      logits = logits + mask_bias
    if distance_bias is not None:
      logits = logits + by_query(distance_bias, query.shape[1])
    weights = drop(jax.nn.softmax(logits, axis=-1).astype(query.dtype))
    return jnp.einsum(f'bhqk,{laid_out}->bqhd', weights, value)

  if block is None:
    shape = device_share.device_share((batch, head[0]), ('batch', 'heads'))
    block = choose_block(*shape, length, keys)
  if length <= block:
    return rows(query, mask_bias, distance_bias)
  count = math.ceil(length / block)
  size = math.ceil(length / count)
  added = count * size - length

  def pad(x, axis, *, front=False):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (added, 0) if front else (0, added)
    return jnp.pad(x, widths)

  # A mask bias that all queries share needs no slicing.
  is_shared = mask_bias is None or mask_bias.shape[2] == 1
  if not is_shared:
    mask_bias = pad(mask_bias, 2)
  if distance_bias is not None:
    distance_bias = pad(distance_bias, 1, front=True)

  def one_block(inputs):
    number, query = inputs
    mask, distances = mask_bias, distance_bias
    if not is_shared:
      mask = jax.lax.dynamic_slice_in_dim(mask, number * size, size, 2)
    if distances is not None:
      start = (count - 1 - number) * size
      distances = jax.lax.dynamic_slice_in_dim(
        distances, start, size + keys - 1, 1
      )
    return rows(query, mask, distances)

  query = jnp.moveaxis(pad(query, 1).reshape(batch, count, size, *head), 1, 0)
  y = jax.lax.map(jax.checkpoint(one_block), (jnp.arange(count), query))
  return jnp.moveaxis(y, 0, 1).reshape(batch, -1, *head)[:, :length]


def choose_block(batch: int, heads: int, queries: int, keys: int) -> int:
  """Returns the number of queries per block, at most `queries`.

  Args:
    batch: prompts per device.
    heads: heads per device.
    queries: queries per prompt.
    keys: keys per prompt.
  """
  of_a_query = batch * heads * keys * _FLOAT32
  return min(max(WEIGHTS_BYTES // of_a_query, _LEAST_BLOCK), queries)


def by_query(
  distance_bias: Float[typing.Array, 'heads distances'], queries: int
) -> Float[jax.Array, '1 heads queries keys']:
  """Expands a bias by distance to every pair of query and key.

  Args:
    distance_bias: as in `attend`.
    queries: number of queries.

  Returns:
    `[1, heads, queries, keys]`: each query's row is the previous query's row,
    shifted by one key.
  """
  heads, distances = distance_bias.shape
  keys = distances - queries + 1
  # Repeat a row padded by one number, then cut the flat array into rows without
  # the padding: each row begins one number earlier. This avoids a gather.
  width = distances + 1
  row = jnp.pad(distance_bias, ((0, 0), (0, 1)))
  row = jnp.roll(row, 1 - queries, axis=1)
  copies = jnp.broadcast_to(row[:, None], (heads, queries, width))
  copies = copies.reshape(heads, -1)[:, : queries * (width - 1)]
  return copies.reshape(heads, queries, width - 1)[None, :, :, :keys]
