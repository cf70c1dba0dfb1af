"""A file of JSON lines, each of them about a step of a run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from perlhf_jax.core import strict_json

# Lines that cannot be read are moved to a file of this name behind the log's.
ASIDE = '.damaged'
_NUMBERS_SHOWN = 5


class StepLog:
  """Appends to a file; what a resumed run will make again is dropped first.

  Lines that cannot be read, such as those of a disk that lost its power, are
  set aside with a warning that names them. For the first process only: the
  others have nothing to write.
  """

  def __init__(self, path: epath.Path, start_step: int):
    """Opens the file, keeping lines up to `start_step`.

    Args:
      path: of the file, which need not exist.
      start_step: step that the run goes on from; 0 for a new one.
    """
    self._path, self._start_step = path, start_step
    self._lines: list[str] = []
    damaged: dict[int, bytes] = {}
    for number, line in _numbered_lines(path):
      record = _parse(line)
      if record is None:
        damaged[number] = line
      elif record['step'] <= start_step:
        self._lines.append(line.decode())
    # Before they are dropped: a kill in between doubles them.
    if damaged:
      self._set_aside(damaged)
    self._size = 0
    self._rewrite()

  def append(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends records, each of which has a `step`.

    What was removed from the file, or put into it, by somebody else meanwhile
    is undone: it holds the records of this run.

    Args:
      records: what is not a finite number in them is written as null.
    """
    lines = [
      strict_json.dumps(strict_json.null_nonfinite(record))
      for record in records
    ]
    is_intact = self._is_intact()
    self._lines += lines
    # Objects in a bucket cannot be appended to.
    if '://' in str(self._path) or not is_intact:
      self._rewrite()
      return
    data = _joined(lines)
    with self._path.open('ab') as file:
      file.write(data)
    self._size += len(data)

  def records(self) -> list[dict[str, Any]]:
    """Returns the records that the file holds."""
    return [strict_json.loads(line) for line in self._lines]

  def warn_of_gaps(self, period: int, **fields: Any) -> None:
    """Warns of records of earlier starts that are not there any more.

    Args:
      period: steps between two of them; there are equally many each time.
      **fields: that they have in common.
    """
    found = Counter(
      record['step']
      for record in self.records()
      if fields.items() <= record.items()
    )
    most = max(found.values(), default=1)
    steps = range(period, self._start_step + 1, period)
    missing = [step for step in steps if found[step] < most]
    if missing:
      logging.warning(
        '%s lacks records of step %s. They were lost, unless an earlier start '
        'wrote fewer. The run goes on without.',
        *(self._path, _listed(missing)),
      )

  def _is_intact(self) -> bool:
    """Whether the file is as this run left it, as far as its size tells."""
    is_there = self._path.exists()
    if is_there and self._path.stat().length == self._size:
      return True
    logging.warning(
      '%s was %s by somebody else while the run was going on; it is written '
      'again, with all records of the run.',
      *(self._path, 'changed' if is_there else 'removed'),
    )
    return False

  def _set_aside(self, damaged: Mapping[int, bytes]) -> None:
    """Moves damaged lines to a file beside, and names them."""
    aside = self._path.with_name(self._path.name + ASIDE)
    before = aside.read_bytes() if aside.exists() else b''
    aside.write_bytes(
      before + b''.join(each + b'\n' for each in damaged.values())
    )
    logging.warning(
      '%s: line %s cannot be read as a record with a step, and is set aside '
      'in %s. The run goes on without.',
      *(self._path, _listed([*damaged]), aside.name),
    )

  def _rewrite(self) -> None:
    data = _joined(self._lines)
    temporary = self._path.with_name(self._path.name + '.tmp')
    temporary.write_bytes(data)
    temporary.replace(self._path)
    self._size = len(data)


def _numbered_lines(path: epath.Path) -> list[tuple[int, bytes]]:
  """Reads lines that are not empty, with their numbers from 1 on.

  A last one that a kill cut short is left out.
  """
  if not path.exists():
    return []
  lines = path.read_bytes().split(b'\n')[:-1]
  return [(n, line) for n, line in enumerate(lines, start=1) if line]


def _parse(line: bytes) -> dict[str, Any] | None:
  """Reads a record; None if it is damaged."""
  try:
    record = strict_json.loads(line.decode())
  except (ValueError, RecursionError):
    return None
  is_record = isinstance(record, dict) and type(record.get('step')) is int
  return record if is_record else None


def _listed(numbers: Sequence[int]) -> str:
  more = len(numbers) - _NUMBERS_SHOWN
  shown = ', '.join(map(str, numbers[:_NUMBERS_SHOWN]))
  return f'{shown} and {more} more' if more > 0 else shown


def _joined(lines: Iterable[str]) -> bytes:
  return ''.join(line + '\n' for line in lines).encode()
