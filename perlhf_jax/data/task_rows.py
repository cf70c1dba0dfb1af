"""The result of reading one task."""

from collections import Counter
from collections.abc import Sequence
import dataclasses

import numpy as np

from perlhf_jax.data import token_columns


@dataclasses.dataclass
class TaskRows:
  """The examples of a task's split, and statistics of the rows left out.

  Attributes:
    tokens: truncated tokens of each text feature.
    numbers: float32 `[examples]` of each number feature.
    lists: list of each example, by list feature.
    origins: origin of each example.
    num_read: number of rows read, skipped ones included.
    reasons: number of unusable rows that were skipped, by reason.
    first_bad: origin of the first skipped row, by reason.
    truncated: number of truncated examples, by text feature.
  """

  tokens: dict[str, token_columns.TokenColumn]
  numbers: dict[str, np.ndarray]
  lists: dict[str, list[list]]
  origins: list[str]
  num_read: int = 0
  reasons: Counter = dataclasses.field(default_factory=Counter)
  first_bad: dict[str, str] = dataclasses.field(default_factory=dict)
  truncated: Counter = dataclasses.field(default_factory=Counter)

  def __len__(self) -> int:
    return len(self.origins)

  def skip(self, origin: str, problem: str) -> None:
    """Counts an unusable row."""
    self.reasons[problem] += 1
    self.first_bad.setdefault(problem, origin)

  def only(self, indices: Sequence[int]) -> 'TaskRows':
    """Returns a copy with only these examples."""

    def chosen(column):
      return [column[index] for index in indices]

    return dataclasses.replace(
      self,
      tokens={
        name: token_columns.TokenColumn(chosen(column))
        for name, column in self.tokens.items()
      },
      numbers={
        name: column[np.asarray(indices, np.int64)]
        for name, column in self.numbers.items()
      },
      lists={name: chosen(column) for name, column in self.lists.items()},
      origins=chosen(self.origins),
    )


def joined(parts: Sequence[TaskRows]) -> TaskRows:
  """Concatenates the rows of several tasks, or of parts of one task.

  Args:
    parts: at least one, with the same features.
  """
  first = parts[0]
  if len(parts) == 1:
    return first  # A copy of a large task would take seconds.
  whole = TaskRows(
    tokens={
      name: token_columns.TokenColumn.joined([p.tokens[name] for p in parts])
      for name in first.tokens
    },
    numbers={
      name: np.concatenate([part.numbers[name] for part in parts])
      for name in first.numbers
    },
    lists={
      name: [each for part in parts for each in part.lists[name]]
      for name in first.lists
    },
    origins=[origin for part in parts for origin in part.origins],
    num_read=sum(part.num_read for part in parts),
  )
  for part in parts:
    whole.reasons += part.reasons
    whole.truncated += part.truncated
    whole.first_bad = part.first_bad | whole.first_bad
  return whole
