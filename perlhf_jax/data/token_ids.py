"""Token ids that a vocabulary, or a model, does not have.

An id beyond the embedding is NaN in every number that a model gives, and a
negative one counts from the end, without a word of either.
"""

from collections.abc import Iterator, Sequence

import numpy as np


def find_bad(
  rows: Sequence[np.ndarray], num_ids: int
) -> Iterator[tuple[int, int]]:
  """Yields the rows that have an id that does not exist.

  Args:
    rows: token ids `[length]` each, of any integer dtype.
    num_ids: ids go from 0 to one less.

  Yields:
    The index of the row, and its first such id.
  """
  if not len(rows):
    return
  # Of thousands of rows, most often none is bad: one look at all of them.
  values = np.concatenate(rows)
  if not values.size or (values.min() >= 0 and values.max() < num_ids):
    return
  for index, row in enumerate(rows):
    bad = row[(row < 0) | (row >= num_ids)]
    if bad.size:
      yield index, int(bad[0])


def describe(bad: int, what: str, num_ids: int, of: str) -> str:
  """Says what is wrong with an id.

  Args:
    bad: the id.
    what: holds it, such as 'the prompt (inputs)'.
    num_ids: see `find_bad`.
    of: whose ids they are, such as 'the vocabulary'.
  """
  return (
    f'{what} has the token id {bad}, and {of} has ids from 0 to {num_ids - 1}'
  )
