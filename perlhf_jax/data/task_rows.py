"""What reading one task gave."""

from collections import Counter
from collections.abc import Sequence
import dataclasses

import numpy as np

from perlhf_jax.data import token_columns


@dataclasses.dataclass
class TaskRows:
  """The examples of a split of one task, and what was left out of it.

  Attributes:
    tokens: truncated tokens of each text feature.
    numbers: float32 `[examples]` of each number feature.
    lists: of each list feature, that of each example.
    origins: where each example came from.
    num_read: rows read, those included that are no example.
    reasons: how many unusable rows were skipped for which reason.
    first_bad: of each reason, the origin of the first row.
    truncated: of each text feature, how many examples were cut.
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
    """Returns the same with these examples alone."""

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
  """Puts the rows of several tasks, or parts of one, one after the other.

  Args:
    parts: at least one, with the same features.
  """
  first = parts[0]
  if len(parts) == 1:
    return first  # Of a large task a copy takes seconds.
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
