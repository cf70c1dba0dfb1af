"""Masks over tokens: sums and means, the last token, EOS, shifting.

A mask is bool and true where a token counts. Every function accepts rows that
are all false, because they pad the last batch of an evaluation, and documents
their result: always a finite number, never NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, Num, Shaped

from perlhf_jax.core.typing import Array


def masked_sum(
  x: Num[Array, '*shape'],
  mask: Bool[Array, '*shape'],
  axis: int | tuple[int, ...] | None = None,
) -> Num[jax.Array, '...']:
  """Sums the elements of `x` where `mask` is true.

  Masked positions are ignored, and get gradient 0, even if they hold NaN or
  infinity.

  Args:
    x: [...] numbers.
    mask: [...] true where an element counts.
    axis: axis or axes to sum over; all by default.

  Returns:
    The sum; 0 if all elements are masked.
  """
  return jnp.sum(jnp.where(mask, x, jnp.zeros_like(x)), axis=axis)


def masked_mean(
  x: Num[Array, '*shape'],
  mask: Bool[Array, '*shape'],
  axis: int | tuple[int, ...] | None = None,
) -> Num[jax.Array, '...']:
  """Averages the elements of `x` where `mask` is true.

  Args:
    x: [...] numbers.
    mask: [...] true where an element counts.
    axis: axis or axes to average over; all by default.

  Returns:
    The mean; 0 if all elements are masked.
  """
  count = jnp.sum(mask, axis=axis)
  return masked_sum(x, mask, axis) / jnp.maximum(count, 1)


def last_valid_index(
  mask: Bool[Array, 'batch length'],
) -> Int[jax.Array, ' batch']:
  """Returns the position of the last true element of each row.

  The true elements need not be contiguous.

  Args:
    mask: [batch, length] true at valid tokens.

  Returns:
    int32 [batch]; 0 for a row without a valid token.
  """
  length = mask.shape[1]
  positions = jnp.arange(length, dtype=jnp.int32)
  return jnp.max(jnp.where(mask, positions, 0), axis=1)


def gather_last_valid(
  x: Shaped[Array, 'batch length *rest'], mask: Bool[Array, 'batch length']
) -> Shaped[jax.Array, ' batch *rest']:
  """Picks from each row the element at its last valid position.

  Args:
    x: [batch, length, ...] values, for example decoder states.
    mask: [batch, length] true at valid tokens.

  Returns:
    [batch, ...]; for a row without a valid token, its element at position 0.
  """
  index = last_valid_index(mask)
  index = index.reshape(index.shape + (1,) * (x.ndim - 1))
  return jnp.take_along_axis(x, index, axis=1).squeeze(axis=1)


def shift_right(
  tokens: Int[Array, 'batch length'], start_id: int = 0
) -> Int[jax.Array, 'batch length']:
  """Makes decoder inputs from decoder targets.

  `[[5, 6, 1]]` becomes `[[0, 5, 6]]`.

  Args:
    tokens: [batch, length] target tokens.
    start_id: the decoder's start token, 0 in T5.

  Returns:
    [batch, length] of the same dtype; the last target is dropped.
  """
  start = jnp.full_like(tokens[:, :1], start_id)
  return jnp.concatenate([start, tokens[:, :-1]], axis=1)


def mask_after_eos(
  tokens: Int[Array, 'batch length'], eos_id: int = 1
) -> Bool[jax.Array, 'batch length']:
  """Masks the tokens of a response up to its first EOS, EOS included.

  `[[5, 1, 7, 1]]` becomes `[[True, True, False, False]]`.

  Args:
    tokens: [batch, length] sampled tokens.
    eos_id: the end-of-sequence token, 1 in T5.

  Returns:
    [batch, length]; all true for a row without EOS, cut off at the length
    limit.
  """
  is_eos = (tokens == eos_id).astype(jnp.int32)
  num_eos_before = jnp.cumsum(is_eos, axis=1) - is_eos
  return num_eos_before == 0
