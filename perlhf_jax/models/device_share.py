"""The shape of one device's shard of an array, while a program is traced."""

from collections.abc import Sequence
import math

import flax.linen as nn
import jax
import numpy as np


def device_share(shape: Sequence[int], axes: Sequence[str | None]) -> list[int]:
  """Returns the shape of one device's shard of an array.

  Args:
    shape: shape of the whole array.
    axes: its logical axes; without a mesh or rules, nothing is sharded.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  spec = nn.logical_to_mesh_axes(axes) if sizes else (None,) * len(shape)
  return [
    math.ceil(size / math.prod(sizes.get(axis, 1) for axis in _names(split)))
    for size, split in zip(shape, spec, strict=True)
  ]


def _names(split) -> list[str]:
  return [axis for axis in np.atleast_1d(split) if isinstance(axis, str)]
