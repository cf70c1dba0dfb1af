"""The rows of a plan, written to a file at once and read again later."""

from collections.abc import Mapping, Sequence
import hashlib
import os
from typing import Any

from absl import logging
from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.core import versions
from perlhf_jax.plan import compiling
from perlhf_jax.plan import programs as programs_lib
from perlhf_jax.stages import line_files
from perlhf_jax.training import partitioning

# The key of a row: topology, tuning, batch size and program.
Key = tuple[str, str, int, str]
_KEY_FIELDS = ('topology', 'tuning', 'batch_size', 'program')
_FINGERPRINT = 'fingerprint'
# Environment variables that the compiler reads.
_ENVIRONMENT = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


def fingerprint(
  setting: programs_lib.Setting,
  partitioner: partitioning.Partitioner,
  options: Mapping[str, Any],
) -> str:
  """Returns a digest of everything that a row depends on, except its key.

  Args:
    setting: the setting; its batch size and programs do not count.
    partitioner: how to shard models and batches.
    options: the compiler options.

  Returns:
    16 hexadecimal digits, which also depend on the versions of the libraries.
  """
  fields = {**vars(setting), 'batch_size': None, 'programs': None}
  parts = [
    *map(repr, (fields, partitioner, dict(options))),
    *versions.describe(),
    *(f'{name}={os.environ.get(name)}' for name in _ENVIRONMENT),
  ]
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]


class Rows:
  """Rows by key; a file is rewritten with all rows after each new one."""

  def __init__(
    self, path: str | None = None, fingerprints: Mapping[str, str] | None = None
  ):
    """Reads the rows of a file that have the same setting.

    Args:
      path: the JSON file; None for no file.
      fingerprints: fingerprints of the settings, by tuning.

    Raises:
      ConfigError: the file cannot be written, or holds other content.
    """
    self._path = path
    self._fingerprints = fingerprints or {}
    self._rows: dict[Key, compiling.Row] = {}
    if path is not None:
      line_files.check_output(path)
      self._take_over(path)

  def get(self, key: Key) -> compiling.Row | None:
    """Returns a row, or None if it is missing."""
    return self._rows.get(key)

  def add(self, row: compiling.Row) -> compiling.Row:
    """Adds a row and writes the file; returns it with its fingerprint."""
    row = {**row, _FINGERPRINT: self._fingerprints.get(row['tuning'])}
    self._rows[_key(row)] = row
    self._write(list(self._rows.values()))
    return row

  def finish(self, rows: Sequence[compiling.Row]) -> None:
    """Writes only the final rows to the file, without the rows of a search."""
    self._write(rows)

  def summary(self) -> str:
    """Returns a text about the rows that remain after an interruption."""
    if not self._rows:
      return 'no program was compiled yet.'
    rows = f'{len(self._rows)} rows are there'
    if self._path is None:
      return f'{rows}; give --output=F.json to keep them.'
    return f'{rows}, in {self._path}; the same command goes on from them.'

  def _take_over(self, path: str) -> None:
    file = epath.Path(path)
    if not file.exists():
      return
    try:
      rows = strict_json.loads(file.read_text())
      keys = [_key(row) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
      raise errors.ConfigError(
        f'--output={path} exists and is not a file of perlhf plan; it would '
        'be overwritten. Remove it, or give another name.'
      ) from error
    for key, row in zip(keys, rows, strict=True):
      known = self._fingerprints.get(row['tuning'])
      if known is not None and row.get(_FINGERPRINT) == known:
        self._rows[key] = row
    if self._rows:
      logging.info('%s: using its %d rows.', path, len(self._rows))
    others = len(rows) - len(self._rows)
    if others:
      logging.warning(
        '%s: %d rows belong to another setting or to other versions of the '
        'libraries; the rows of this run replace them.',
        *(path, others),
      )

  def _write(self, rows: Sequence[compiling.Row]) -> None:
    if self._path is not None:
      text = strict_json.dumps(list(rows), indent=2) + '\n'
      line_files.write_text(self._path, [text])


def _key(row: compiling.Row) -> Key:
  return tuple(row[field] for field in _KEY_FIELDS)
