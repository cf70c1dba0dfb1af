"""Sums over the bits of an array, which depend on every bit's place.

The sums are exact, in modular integer arithmetic: they do not depend on the
order of the additions, and so not on the mesh or the number of processes.
"""

import jax
import jax.numpy as jnp
import numpy as np

_MULTIPLIERS = (np.uint32(2654435761), np.uint32(2246822519))


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 that spreads every bit (murmur3's finaliser)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def of(bits: jax.Array, *more: jax.Array) -> jax.Array:
  """Returns two position-weighted sums of words; traceable by `jax.jit`.

  A change of one word always changes both sums. Words that change places, and
  several words that change, leave both the same by chance only: one case in
  2**64.

  Args:
    bits: uint32, of any shape; a word's position is its flat index.
    *more: arrays of the shape of `bits` to sum as uint32 in the same pass.

  Returns:
    uint32 `[2 + len(more)]`, modulo 2**32.
  """
  position = jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position = position * np.uint32(size % 2**32) + index
  operands = [_mix(bits + m * (position + 1)) for m in _MULTIPLIERS]
  operands += [each.astype(jnp.uint32) for each in more]
  # XLA runs one reduction of several operands on CPUs many times faster than
  # one reduction for each.
  sums = jax.lax.reduce(
    tuple(operands),
    (np.uint32(0),) * len(operands),
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    tuple(range(bits.ndim)),
  )
  return jnp.stack(sums)
