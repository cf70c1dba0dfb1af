"""A file of JSON lines, each about a step of a run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from perlhf_jax.core import strict_json

# Suffix of the file to which unreadable lines are moved.
ASIDE = '.damaged'
_NUMBERS_SHOWN = 5


class StepLog:
  """Appends records to a file; drops records that a resumed run will repeat.

  Lines that cannot be read, for example after a power failure, are moved to
  another file with a warning that names them. Only process 0 uses it.
  """

  def __init__(self, path: epath.Path, start_step: int):
    """Opens the file, and keeps its records up to `start_step`.

    Args:
      path: path of the file, which need not exist.
      start_step: step that the run resumes from; 0 for a new run.
    """
    self._path, self._start_step = path, start_step
    self._lines: list[str] = []
    damaged: dict[int, bytes] = {}
    content = path.read_bytes() if path.exists() else b''
    for number, line, record in _numbered_records(content):
      if record is None:
        damaged[number] = line
      elif record['step'] <= start_step:
        self._lines.append(line.decode())
    # Moved before they are dropped: a kill in between only duplicates them.
    if damaged:
      self._set_aside(damaged)
    self._size = 0
    self._rewrite()

  def append(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends records, each with a `step`.

    If somebody else has changed the file meanwhile, it is rewritten with the
    records of this run.

    Args:
      records: records to append; numbers that are not finite become null.
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
        'wrote fewer. The run goes on without them.',
        *(self._path, _listed(missing)),
      )

  def _is_intact(self) -> bool:
    """Whether the file still has the size that this run left."""
    is_there = self._path.exists()
    if is_there and self._path.stat().length == self._size:
      return True
    logging.warning(
      '%s was %s by another program during the run; it is written again, with '
      'all records of the run.',
      *(self._path, 'changed' if is_there else 'removed'),
    )
    return False

  def _set_aside(self, damaged: Mapping[int, bytes]) -> None:
    """Moves damaged lines to the file `ASIDE`, and logs their numbers."""
    aside = self._path.with_name(self._path.name + ASIDE)
    before = aside.read_bytes() if aside.exists() else b''
    aside.write_bytes(
      before + b''.join(each + b'\n' for each in damaged.values())
    )
    logging.warning(
      '%s: line %s cannot be read as a record with a step, and is set aside '
      'in %s. The run goes on without it.',
      *(self._path, _listed([*damaged]), aside.name),
    )

  def _rewrite(self) -> None:
    data = _joined(self._lines)
    temporary = self._path.with_name(self._path.name + '.tmp')
    temporary.write_bytes(data)
    temporary.replace(self._path)
    self._size = len(data)


def parse(content: bytes) -> tuple[list[dict[str, Any]], list[int]]:
  """Reads a log without changing it, for example that of a running command.

  Args:
    content: content of the file.

  Returns:
    The records, and the numbers of damaged lines, from 1.
  """
  found = list(_numbered_records(content))
  return (
    [record for _, _, record in found if record is not None],
    [number for number, _, record in found if record is None],
  )


def _numbered_records(
  content: bytes,
) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
  """Yields lines that are not empty: number from 1, line, and its record.

  The record of a damaged line is None. A last line without a newline, which a
  kill cut short, is left out.
  """
  for number, line in enumerate(content.split(b'\n')[:-1], start=1):
    if line:
      yield number, line, _parse(line)


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
