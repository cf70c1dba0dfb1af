"""A content fingerprint of a backbone, computed where the weights lie.

The sum is modular integer arithmetic, so it is exact, does not depend on the
mesh, and needs no gather: an adapter trained on a pod recognises its base on
a laptop. Stacked layers (`scan_layers`) count as the layers they hold.
"""

from collections.abc import Mapping
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.training import layer_layout
from perlhf_jax.training import placement

_MULTIPLIERS = (np.uint32(2654435761), np.uint32(2246822519))


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 that spreads every bit (murmur3's finaliser)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


@jax.jit
def _leaf_sums(leaf: jax.Array) -> jax.Array:
  """Two position-weighted sums modulo 2**32 of a leaf's float32 bits."""
  bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
  position = jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(leaf.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    position = position * np.uint32(size % 2**32) + index
  return jnp.stack(
    [
      jnp.sum(_mix(bits + multiplier * (position + 1)), dtype=jnp.uint32)
      for multiplier in _MULTIPLIERS
    ]
  )


def fingerprint(params: Mapping[str, Any]) -> str:
  """Returns 16 hexadecimal digits that identify names, shapes and values.

  Args:
    params: an unboxed tree in the unrolled or in the scanned layout.
  """
  digest = hashlib.sha256()
  lines = []
  for path, leaf in tree_paths.flatten(params).items():
    for name, part in _unrolled(path, jnp.asarray(leaf)):
      sums = placement.to_host(_leaf_sums(part))
      lines.append(f'{name} {part.shape} {sums[0]} {sums[1]}')
  digest.update('\n'.join(sorted(lines)).encode())
  return digest.hexdigest()[:16]


def _unrolled(path: str, leaf: typing.Array):
  if not layer_layout.is_stacked(path):
    yield path, leaf
    return
  for index in range(leaf.shape[0]):
    yield layer_layout.unrolled_path(path, index), leaf[index]
