"""JSON lines files that `score` and `generate` read and write.

Every input line gives one output line, in the same order.
"""

import codecs
from collections.abc import Iterable, Mapping, Sequence
import os
import reprlib
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.training import multihost

# The largest file, which is read as a whole.
_MAX_BYTES = 2 * 1024**3


def read(
  path: str, fields: Sequence[str], several: Sequence[str] = ()
) -> list[dict[str, Any]]:
  """Reads the objects of a `.jsonl` file.

  Args:
    path: local or `gs://`.
    fields: names of strings that each object must have.
    several: the fields that may be a list of strings instead.

  Raises:
    DataError: the file is empty or cannot be read, or a line is not such an
      object; the message names file and line.
  """
  problem = plain_files.find_problem(path, _MAX_BYTES, pipes=True)
  if problem is not None:
    raise errors.DataError(f'Cannot read --input={path}: {problem}.')
  try:
    content = plain_files.read(path, errors.DataError, _MAX_BYTES, pipes=True)
  except OSError as error:
    raise errors.DataError(f'Cannot read --input={path}: {error}.') from error
  content = content.removeprefix(codecs.BOM_UTF8)
  if not content:
    raise errors.DataError(
      f'--input={path} is empty; write one object per line into it, '
      f'{_example(fields)}.'
    )
  # splitlines() would also break lines at characters inside strings.
  return [
    _parse(line, f'{path}:{number}', fields, several)
    for number, line in enumerate(
      content.removesuffix(b'\n').split(b'\n'), start=1
    )
  ]


def check_output(path: str) -> None:
  """Checks, before the work starts, that process 0 can write a file.

  Raises:
    ConfigError: it cannot; on all hosts.
  """
  error = None
  if jax.process_index() == 0:
    try:
      _try_to_write(path)
    except errors.ConfigError as e:
      error = e
  multihost.raise_together(error)


def _try_to_write(path: str) -> None:
  output = epath.Path(path)
  if not output.parent.exists():
    raise errors.ConfigError(
      f'The folder of --output={path} does not exist; make it first.'
    )
  if output.is_dir():
    raise errors.ConfigError(
      f'--output={path} is a folder; name the file to write.'
    )
  temporary = _temporary(output)
  try:
    temporary.write_text('')
    temporary.unlink()
  except OSError as error:
    raise errors.ConfigError(
      f'Cannot write --output={path}: {error}.'
    ) from error


def write(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes one object per line; the file appears complete or not at all.

  Only process 0 writes.

  Raises:
    ValueError: a number is NaN or infinite.
  """
  write_text(path, (strict_json.dumps(row) + '\n' for row in rows))


def write_text(path: str, parts: Iterable[str]) -> None:
  """Writes a text that is given in parts, in the same way as `write`."""
  if jax.process_index():
    return
  output = epath.Path(path)
  temporary = _temporary(output)
  try:
    with temporary.open('w', encoding='utf-8') as file:
      file.writelines(parts)
    temporary.replace(output)
  except BaseException as error:
    if isinstance(error, OSError) and error.filename is None:
      error.filename = path  # A write that fails does not name its file.
    temporary.unlink(missing_ok=True)
    raise


def report_cuts(
  name: str, lengths: Sequence[int], limit: int | None, setting: str
) -> None:
  """Warns if texts are longer than a limit.

  Args:
    name: the kind of text, such as `prompt`.
    lengths: tokens of each text.
    limit: the length to which texts are cut; None if they are not.
    setting: what sets the limit, such as the flag `--prompt_length`.
  """
  cut = sum(limit is not None and length > limit for length in lengths)
  if cut:
    logging.warning(
      '%d of %d %ss are longer than %d tokens and are cut; %s sets another '
      'limit.',
      *(cut, len(lengths), name, limit, setting),
    )


def _parse(
  line: bytes, where: str, fields: Sequence[str], several: Sequence[str]
) -> dict[str, Any]:
  try:
    row = strict_json.loads(line.decode('utf-8'))
  except ValueError as error:  # Malformed JSON, or not UTF-8.
    raise errors.DataError(
      f'{where} is not JSON: {error}. Each line must be {_example(fields)}.'
    ) from error
  if not isinstance(row, dict):
    raise errors.DataError(
      f'{where} is not a JSON object; each line must be {_example(fields)}.'
    )
  for field in fields:
    value = row.get(field)
    if field in several and isinstance(value, list):
      _check_list(value, where, field)
    elif not isinstance(value, str):
      given = f' (it is {reprlib.repr(value)})' if field in row else ''
      raise errors.DataError(
        f'{where} has no string {field!r}{given}; each line must be '
        f'{_example(fields)}.'
      )
  try:
    strict_json.dumps(row).encode('utf-8')
  except UnicodeEncodeError as error:
    raise errors.DataError(
      f'{where} holds half of a surrogate pair, which is not valid text; '
      'remove it.'
    ) from error
  return row


def _check_list(values: Sequence[Any], where: str, field: str) -> None:
  if not values:
    raise errors.DataError(
      f'{where}: the list {field!r} is empty; give at least one string, or '
      'remove the line.'
    )
  for index, value in enumerate(values):
    if not isinstance(value, str):
      raise errors.DataError(
        f'{where}: {field}[{index}] is {reprlib.repr(value)}, not a string; '
        'give text in quotes.'
      )


def _example(fields: Sequence[str]) -> str:
  return '{' + ', '.join(f'"{field}": "…"' for field in fields) + '}'


def _temporary(output: epath.Path) -> epath.Path:
  # Of this process alone: another that writes the same file, or checks that it
  # could, must not take this one's away.
  return output.with_name(f'{output.name}.{os.getpid()}.tmp')
