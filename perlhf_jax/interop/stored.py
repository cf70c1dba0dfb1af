"""Arrays that stay in their files until somebody reads them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

_Entry = TypeVar('_Entry')


class Stored:
  """An array in a file: `np.asarray` reads it, in float32, each time.

  Attributes:
    shape: of the array.
    dtype: in which the file has it, by name.
    tensor: what it is in the file, or a layer of what.
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: str,
    tensor: str,
    read: Callable[[], np.ndarray],
  ):
    """Takes what `read` returns, and keeps none of it."""
    self.shape = shape
    self.dtype = dtype
    self.tensor = tensor
    self._read = read

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    """Reads it; it is the caller's own, so that it is not copied again."""
    del copy
    return np.asarray(self._read(), dtype=dtype)

  def through(self, read: Callable[['Stored'], np.ndarray]) -> 'Stored':
    """Returns it as an array that is read by a function of it."""
    return Stored(self.shape, self.dtype, self.tensor, lambda: read(self))


def read(path: str, array: Any) -> np.ndarray:
  """Reads an array, which becomes contiguous; what loaders do by default."""
  del path
  return np.ascontiguousarray(array)


def layers_together(
  table: Iterable[_Entry], flat: Mapping[str, Any]
) -> list[_Entry]:
  """Orders parameters so that none of their files' blocks is read twice.

  Args:
    table: entries with a `path`.
    flat: arrays, read or not, by path.

  Returns:
    The entries, those of one tensor in a row, and in their order otherwise.
  """
  groups: dict[str, list[_Entry]] = {}
  for entry in table:
    tensor = getattr(flat[entry.path], 'tensor', entry.path)
    groups.setdefault(tensor, []).append(entry)
  return [entry for group in groups.values() for entry in group]


def dtype_of(arrays: Iterable[Any]) -> str:
  """Returns the dtype in which arrays are written so that nothing is lost.

  Args:
    arrays: of a model.

  Returns:
    'bfloat16' if all of them are in it, in their files or in memory, and
    'float32' if not.
  """
  names = {getattr(array.dtype, 'name', array.dtype) for array in arrays}
  return 'bfloat16' if names == {'bfloat16'} else 'float32'
