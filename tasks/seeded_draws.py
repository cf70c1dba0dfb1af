"""Random choices that depend on a key alone.

Not on the order of the records, the machine, the version of Python or what was
drawn before: the same record always gets the same wrong answer.
"""

from collections.abc import Sequence
import hashlib
from typing import TypeVar

_Item = TypeVar('_Item')


def draw_index(key: str, size: int) -> int:
  """A number from 0 to size - 1, each equally likely.

  Args:
    key: whatever tells this draw from all others, with the seed.
    size: how many there are, at least 1.
  """
  digest = hashlib.sha256(key.encode('utf-8', 'surrogatepass')).digest()
  return int.from_bytes(digest[:16], 'big') % size


def draw(key: str, items: Sequence[_Item]) -> _Item:
  """One of the items, each equally likely."""
  return items[draw_index(key, len(items))]
