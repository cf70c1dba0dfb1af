"""Finds token ids that a vocabulary or a model does not have.

Models do not report them: an id beyond the embedding makes all outputs NaN, and
a negative id counts from the end.
"""

from collections.abc import Iterator, Sequence

import numpy as np


def find_bad(
  rows: Sequence[np.ndarray], num_ids: int
) -> Iterator[tuple[int, int]]:
  """Yields the rows with an id that does not exist.

  Args:
    rows: token ids `[length]` each, of any integer dtype.
    num_ids: number of ids; valid ids are 0 to num_ids - 1.

  Yields:
    The index of the row, and its first invalid id.
  """
  if not len(rows):
    return
  # Usually no row is bad, so all rows are checked at once first.
  values = np.concatenate(rows)
  if not values.size or (values.min() >= 0 and values.max() < num_ids):
    return
  for index, row in enumerate(rows):
    bad = row[(row < 0) | (row >= num_ids)]
    if bad.size:
      yield index, int(bad[0])


def describe(bad: int, what: str, num_ids: int, of: str) -> str:
  """Describes the problem of an invalid id.

  Args:
    bad: the id.
    what: text that contains the id, such as 'the prompt (inputs)'.
    num_ids: see `find_bad`.
    of: owner of the ids, such as 'the vocabulary'.
  """
  return (
    f'{what} has the token id {bad}, and {of} has ids from 0 to {num_ids - 1}'
  )
