"""Random draws that are the same in every version of Python.

Python guarantees the sequence of `random.Random.random`, but not of `choice`,
`sample` and `choices`, and the demo worlds must not change.
"""

from collections.abc import Iterable, Sequence
import random
from typing import TypeVar

_Item = TypeVar('_Item')


def below(rng: random.Random, limit: int) -> int:
  """Draws a number from 0 to limit - 1."""
  return int(rng.random() * limit)


def choice(rng: random.Random, items: Sequence[_Item]) -> _Item:
  """Draws one of the items, uniformly."""
  return items[below(rng, len(items))]


def sample(
  rng: random.Random, items: Iterable[_Item], count: int
) -> list[_Item]:
  """Draws `count` items without replacement, in random order."""
  items = list(items)
  return [items.pop(below(rng, len(items))) for _ in range(count)]


def weighted(rng: random.Random, table: Sequence[tuple[_Item, float]]) -> _Item:
  """Draws a key from a table of (key, weight) whose weights sum to one."""
  position = rng.random()
  for key, weight in table:
    position -= weight
    if position < 0:
      return key
  return table[-1][0]
