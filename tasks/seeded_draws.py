"""Random choices that depend only on a key.

They do not depend on the order of the records, the machine, the version of
Python or earlier draws: the same record always gets the same wrong answer.
"""

from collections.abc import Sequence
import hashlib
from typing import TypeVar

_Item = TypeVar('_Item')


def draw_index(key: str, size: int) -> int:
  """Draws a number from 0 to size - 1, uniformly.

  Args:
    key: identifies this draw among all draws; contains the seed.
    size: number of choices, at least 1.
  """
  digest = hashlib.sha256(key.encode('utf-8', 'surrogatepass')).digest()
  return int.from_bytes(digest[:16], 'big') % size


def draw(key: str, items: Sequence[_Item]) -> _Item:
  """Draws one of the items, uniformly."""
  return items[draw_index(key, len(items))]
