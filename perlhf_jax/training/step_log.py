"""A file of JSON lines, each of them about a step of a run."""

from collections.abc import Iterable, Mapping
import json
from typing import Any

from etils import epath

from perlhf_jax.core import strict_json


class StepLog:
  """Appends to a file; what a resumed run will make again is dropped first.

  For the first process only: the others have nothing to write.
  """

  def __init__(self, path: epath.Path, start_step: int):
    """Opens the file, keeping lines up to `start_step`.

    Args:
      path: of the file, which need not exist.
      start_step: step that the run goes on from; 0 for a new one.
    """
    self._path = path
    self._lines = [
      line
      for line in read_lines(path)
      if json.loads(line)['step'] <= start_step
    ]
    self._rewrite()

  def append(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends records, each of which has a `step`.

    Args:
      records: what is not a finite number in them is written as null.
    """
    lines = [
      strict_json.dumps(strict_json.null_nonfinite(record))
      for record in records
    ]
    self._lines += lines
    if '://' in str(self._path):
      self._rewrite()  # Objects in a bucket cannot be appended to.
      return
    with self._path.open('a') as file:
      file.write(''.join(line + '\n' for line in lines))

  def _rewrite(self) -> None:
    temporary = self._path.with_name(self._path.name + '.tmp')
    temporary.write_text(''.join(line + '\n' for line in self._lines))
    temporary.replace(self._path)


def read_lines(path: epath.Path) -> list[str]:
  """Reads whole lines; a last one that a kill cut short is left out."""
  if not path.exists():
    return []
  lines = path.read_text().split('\n')
  return [line for line in lines[:-1] if line]
