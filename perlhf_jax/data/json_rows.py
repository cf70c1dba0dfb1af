"""Reads JSON files row by row, and records the origin of each row."""

import codecs
from collections.abc import Iterator
import contextlib
from typing import Any, NamedTuple
import zlib

import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.data import bounded_lines
from perlhf_jax.data import whole_files

_GZIP = b'\x1f\x8b'


class Row(NamedTuple):
  """One record of a file.

  Attributes:
    origin: `file:line`, or `file#index` (from 0) in a JSON array.
    record: fields of the row; empty if there is a problem.
    problem: why the row cannot be read; empty if it can.
  """

  origin: str
  record: dict[str, Any]
  problem: str = ''


def read(path: str) -> Iterator[Row]:
  """Yields the rows of a `.jsonl`, `.jsonl.gz` or `.json` (array) file.

  Blank lines are left out. A line that is not a JSON object becomes a row with
  a problem.

  Args:
    path: local or `gs://`.

  Raises:
    DataError: the file has another suffix or cannot be read; a `.json` file
      holds no array; a `.jsonl` file is compressed, UTF-16 or an array; or the
      file is larger than `bounded_lines` and `whole_files` allow.
  """
  with _explained(path):
    if path.endswith('.json'):
      yield from _read_array(path)
    elif path.endswith(('.jsonl', '.jsonl.gz')):
      yield from _read_lines(path)
    else:
      raise errors.DataError(
        f'{path} has an unknown format. Use .jsonl, .jsonl.gz, or .json with'
        ' one array of objects.'
      )


def read_lines(path: str) -> Iterator[Row]:
  """Yields the rows of a file of JSON lines, whatever its suffix.

  For data sets whose `.json` files are JSON lines, not arrays.

  Args:
    path: local or `gs://`; with the suffix `.gz`, compressed.

  Raises:
    DataError: the file cannot be read.
  """
  with _explained(path):
    yield from _read_lines(path)


@contextlib.contextmanager
def _explained(path: str):
  """Turns errors from reading a file into a DataError that names it."""
  try:
    yield
  except (OSError, EOFError, zlib.error, tf.errors.OpError) as error:
    raise errors.DataError(
      f'{path} cannot be read: {error}. Check that the file is complete and'
      ' that you may read it.'
    ) from error


def _read_lines(path: str) -> Iterator[Row]:
  lines = bounded_lines.read(path, is_gzip=path.endswith('.gz'))
  for number, line in enumerate(lines, 1):
    if number == 1:
      line = _checked_beginning(path, line)
    if line.strip():
      yield _row(f'{path}:{number}', line)


def _checked_beginning(path: str, line: bytes) -> bytes:
  """Returns the first line without a byte order mark.

  Raises:
    DataError: the file has another format than its name says.
  """
  if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise errors.DataError(f'{path} is UTF-16; save it as UTF-8.')
  if line.startswith(_GZIP):
    raise errors.DataError(
      f'{path} is compressed; give it a name that ends with .jsonl.gz.'
    )
  if line.strip() == b'[':
    raise errors.DataError(
      f'{path} holds one JSON array, not one object per line; give it a name'
      ' that ends with .json.'
    )
  return line.removeprefix(codecs.BOM_UTF8)


def _row(origin: str, line: bytes) -> Row:
  try:
    record = strict_json.loads(line, allow_nan=True)
  except UnicodeDecodeError as error:
    return Row(origin, {}, f'the line is not UTF-8 ({error})')
  except ValueError as error:
    return Row(origin, {}, f'the line is not valid JSON ({error})')
  return _object(origin, record)


def _read_array(path: str) -> Iterator[Row]:
  text = whole_files.read(path)
  try:
    records = strict_json.loads(text.decode('utf-8-sig'), allow_nan=True)
  except ValueError as error:
    raise errors.DataError(
      f'{path} is not valid JSON: {error}. A .json file must hold one array of'
      ' objects; name a file with one object per line .jsonl.'
    ) from error
  if not isinstance(records, list):
    raise errors.DataError(
      f'{path} is JSON, but not an array of objects. Put [ and ] around its'
      ' objects, or name a file with one object per line .jsonl.'
    )
  for index, record in enumerate(records):
    yield _object(f'{path}#{index}', record)


def _object(origin: str, record: Any) -> Row:
  if isinstance(record, dict):
    return Row(origin, record)
  found = type(record).__name__
  return Row(origin, {}, f'the row is a JSON {found}, not an object')
