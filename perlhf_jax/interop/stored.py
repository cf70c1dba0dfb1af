"""Arrays that stay in their files until they are read."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

_Entry = TypeVar('_Entry')


class Stored:
  """An array in a file, which `np.asarray` reads in float32, each time anew.

  Attributes:
    shape: shape of the array.
    dtype: name of the dtype in the file.
    tensor: name of the tensor in the file that is the array, or contains it as
      a layer.
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: str,
    tensor: str,
    read: Callable[[], np.ndarray],
  ):
    """Wraps `read`, whose result is not kept."""
    self.shape = shape
    self.dtype = dtype
    self.tensor = tensor
    self._read = read

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    """Reads the array; the result is the caller's own, so it is not copied."""
    del copy
    return np.asarray(self._read(), dtype=dtype)

  def through(self, read: Callable[['Stored'], np.ndarray]) -> 'Stored':
    """Returns an array of the same shape that reads as `read(self)`."""
    return Stored(self.shape, self.dtype, self.tensor, lambda: read(self))


def read(path: str, array: Any) -> np.ndarray:
  """Reads an array as contiguous; the default `put` of loaders."""
  del path
  return np.ascontiguousarray(array)


def layers_together(
  table: Iterable[_Entry], flat: Mapping[str, Any]
) -> list[_Entry]:
  """Orders parameters so that no block of their files is read twice.

  Args:
    table: entries with a `path`.
    flat: arrays, stored or read, by path.

  Returns:
    The entries in their order, but with entries of one tensor adjacent.
  """
  groups: dict[str, list[_Entry]] = {}
  for entry in table:
    tensor = getattr(flat[entry.path], 'tensor', entry.path)
    groups.setdefault(tensor, []).append(entry)
  return [entry for group in groups.values() for entry in group]


def dtype_of(arrays: Iterable[Any]) -> str:
  """Returns the smallest dtype in which arrays are written without loss.

  Args:
    arrays: arrays of a model.

  Returns:
    'bfloat16' if all arrays are bfloat16, in their files or in memory; else
    'float32'.
  """
  names = {getattr(array.dtype, 'name', array.dtype) for array in arrays}
  return 'bfloat16' if names == {'bfloat16'} else 'float32'
