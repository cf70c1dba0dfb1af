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
from perlhf_jax.training import bit_sums
from perlhf_jax.training import layer_layout
from perlhf_jax.training import placement

# The exponent's bits, which NaN and infinities have all set.
_EXPONENT = np.uint32(0x7F800000)


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
  bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
  return bit_sums.of(bits, bits & _EXPONENT == _EXPONENT)


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
