"""Compact storage of the tokens of many rows in one buffer."""

from collections.abc import Sequence

import numpy as np

# Most vocabularies have fewer ids, and 350,000 rows have many tokens.
_SMALL = np.uint16


class TokenColumn:
  """Token arrays of different lengths, end to end in one buffer.

  Attributes:
    values: all tokens, uint16 if all ids fit, else int32.
    ends: end of each row in `values`, int64.
  """

  def __init__(self, rows: Sequence[np.ndarray]):
    lengths = np.fromiter(map(len, rows), np.int64, count=len(rows))
    values = np.concatenate(rows) if len(rows) else np.zeros(0, np.int32)
    self._set(values, np.cumsum(lengths))

  @classmethod
  def from_arrays(cls, values: np.ndarray, ends: np.ndarray) -> 'TokenColumn':
    """Makes a column from its two arrays."""
    column = cls.__new__(cls)
    column._set(values, ends)
    return column

  @classmethod
  def joined(cls, columns: Sequence['TokenColumn']) -> 'TokenColumn':
    """Concatenates the rows of columns."""
    if not columns:
      return cls([])
    return cls.from_arrays(
      np.concatenate([column.values for column in columns]),
      np.cumsum(np.concatenate([column.lengths for column in columns])),
    )

  def _set(self, values: np.ndarray, ends: np.ndarray):
    is_small = not values.size or values.max() <= np.iinfo(_SMALL).max
    self.values = values.astype(_SMALL if is_small else np.int32, copy=False)
    self.ends = ends

  def __len__(self) -> int:
    return len(self.ends)

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each row, int64."""
    return np.diff(self.ends, prepend=0)

  def find_beyond(self, num_ids: int) -> int | None:
    """Returns the first index in `values` of an id >= `num_ids`, or None."""
    if not self.values.size or self.values.max() < num_ids:
      return None
    return int(np.argmax(self.values >= num_ids))

  def __getitem__(self, index: int) -> np.ndarray:
    """The tokens of a row, int32 `[length]`."""
    start = self.ends[index - 1] if index else 0
    return self.values[start : self.ends[index]].astype(np.int32)
