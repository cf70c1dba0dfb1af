"""Draws that every version of Python makes alike.

`random.Random.random` is promised to stay as it is; `choice`, `sample` and
`choices` are not, and the demo worlds must not change under their users.
"""

from collections.abc import Iterable, Sequence
import random
from typing import TypeVar

_Item = TypeVar('_Item')


def below(rng: random.Random, limit: int) -> int:
  """A number from 0 to limit - 1."""
  return int(rng.random() * limit)


def choice(rng: random.Random, items: Sequence[_Item]) -> _Item:
  """One of the items, each equally likely."""
  return items[below(rng, len(items))]


def sample(
  rng: random.Random, items: Iterable[_Item], count: int
) -> list[_Item]:
  """Several of the items, each at most once, in random order."""
  items = list(items)
  return [items.pop(below(rng, len(items))) for _ in range(count)]


def weighted(rng: random.Random, table: Sequence[tuple[_Item, float]]) -> _Item:
  """A key of a table of (key, weight) whose weights sum to one."""
  position = rng.random()
  for key, weight in table:
    position -= weight
    if position < 0:
      return key
  return table[-1][0]
