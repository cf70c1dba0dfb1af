"""Fingerprint of a model's weights, and a count of their NaNs and infinities.

The fingerprint is made of sums in modular integer arithmetic. So it is exact,
does not depend on the mesh, and needs no gather: an adapter trained on a pod
recognises its base on a laptop. Stacked layers (`scan_layers`) and the same
layers unrolled have the same fingerprint.

One pass over the weights computes both.
"""

from collections.abc import Mapping
import hashlib
from typing import Any, NamedTuple

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


class Content(NamedTuple):
  """Summary of a tree of weights.

  Attributes:
    fingerprint: 16 hexadecimal digits that identify names, shapes and values.
    not_finite: number of NaN or infinite values by parameter; parameters
      without any are left out.
  """

  fingerprint: str
  not_finite: Mapping[str, int]


@jax.jit
def _leaf_sums(leaf: jax.Array) -> jax.Array:
  """Two position-weighted sums modulo 2**32 of a leaf's float32 bits.

  The third number counts the leaf's NaN or infinite values.
  """
  leaf = leaf.astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
  position = jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(leaf.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    position = position * np.uint32(size % 2**32) + index
  return jnp.stack(
    [
      jnp.sum(_mix(bits + multiplier * (position + 1)), dtype=jnp.uint32)
      for multiplier in _MULTIPLIERS
    ]
    + [jnp.sum(~jnp.isfinite(leaf), dtype=jnp.uint32)]
  )


def read(params: Mapping[str, Any]) -> Content:
  """Reads every weight of a tree once.

  Args:
    params: an unboxed tree in the unrolled or in the scanned layout.
  """
  digest = hashlib.sha256()
  lines, not_finite = [], {}
  for path, leaf in tree_paths.flatten(params).items():
    for name, part in _unrolled(path, jnp.asarray(leaf)):
      *sums, count = placement.to_host(_leaf_sums(part))
      lines.append(f'{name} {part.shape} {sums[0]} {sums[1]}')
      if count:
        not_finite[name] = int(count)
  digest.update('\n'.join(sorted(lines)).encode())
  return Content(digest.hexdigest()[:16], not_finite)


def fingerprint(params: Mapping[str, Any]) -> str:
  """Returns the fingerprint of `read`."""
  return read(params).fingerprint


def _unrolled(path: str, leaf: typing.Array):
  if not layer_layout.is_stacked(path):
    yield path, leaf
    return
  for index in range(leaf.shape[0]):
    yield layer_layout.unrolled_path(path, index), leaf[index]
