"""Softmax attention, of all queries at once or of one block after another."""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import typing


def attend(
  query: Float[typing.Array, 'batch query_length heads head_dim'],
  key: Float[typing.Array, 'batch key_length heads head_dim'],
  value: Float[typing.Array, 'batch key_length heads head_dim'],
  biases: Sequence[Float[typing.Array, '_ _ _ key_length']],
  drop: Callable[[jax.Array], jax.Array],
  block: int | None = None,
) -> Float[jax.Array, 'batch query_length heads head_dim']:
  """Attends from each query to all keys.

  The weights, `[batch, heads, query_length, key_length]` in float32, are the
  largest array of a model that reads long prompts. In blocks, no more of them
  exist at a time than those of `block` queries; the backward pass computes
  them again. The result is the same.

  Args:
    query: `[batch, query_length, heads, head_dim]`.
    key: `[batch, key_length, heads, head_dim]`.
    value: likewise.
    biases: float32, added to the logits in this order; each broadcastable to
      `[batch, heads, query_length, key_length]`.
    drop: dropout of weights, the same for every query.
    block: queries at a time at most; None for all of them.

  Returns:
    `[batch, query_length, heads, head_dim]`.
  """

  def rows(query, biases):
    logits = jnp.einsum(
      'bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32
    )
    for bias in biases:
      logits = logits + bias
    weights = drop(jax.nn.softmax(logits, axis=-1).astype(query.dtype))
    return jnp.einsum('bhqk,bkhd->bqhd', weights, value)

  batch, length, *head = query.shape
  if block is None or length <= block:
    return rows(query, biases)
  count = math.ceil(length / block)
  size = math.ceil(length / count)

  def pad(x, axis):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count * size - length)
    return jnp.pad(x, widths)

  # A bias that all queries share is used by every block as it is.
  biases = [pad(b, 2) if b.shape[2] > 1 else b for b in biases]

  def one_block(inputs):
    number, query = inputs
    return rows(
      query,
      [
        jax.lax.dynamic_slice_in_dim(b, number * size, size, 2)
        if b.shape[2] > 1
        else b
        for b in biases
      ],
    )

  query = jnp.moveaxis(pad(query, 1).reshape(batch, count, size, *head), 1, 0)
  y = jax.lax.map(jax.checkpoint(one_block), (jnp.arange(count), query))
  return jnp.moveaxis(y, 0, 1).reshape(batch, -1, *head)[:, :length]
