"""Files of JSON lines that `score` and `generate` read and write.

Every input line yields one output line, in the same order.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.training import multihost


def read(path: str, fields: Sequence[str]) -> list[dict[str, Any]]:
  """Reads the objects of a `.jsonl` file.

  Args:
    path: local or `gs://`.
    fields: names of strings that each object must have.

  Raises:
    DataError: the file cannot be read, or a line is not such an object; the
      message names file and line.
  """
  try:
    content = epath.Path(path).read_bytes()
  except OSError as error:
    raise errors.DataError(f'Cannot read --input={path}: {error}.') from error
  # Not splitlines(), which also breaks lines at characters inside of strings.
  lines = content.removesuffix(b'\n').split(b'\n') if content else []
  return [
    _parse(line, f'{path}:{number}', fields)
    for number, line in enumerate(lines, start=1)
  ]


def check_output(path: str) -> None:
  """Makes sure that process 0 can write a file, before the work is done.

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
  """Writes one object a line; the file appears whole or not at all.

  Process 0 writes, and the others have nothing to do.
  """
  write_text(path, (json.dumps(r, ensure_ascii=False) + '\n' for r in rows))


def write_text(path: str, parts: Iterable[str]) -> None:
  """Writes a text that is given in parts, in the same way."""
  if jax.process_index():
    return
  output = epath.Path(path)
  temporary = _temporary(output)
  with temporary.open('w', encoding='utf-8') as file:
    file.writelines(parts)
  temporary.replace(output)


def report_cuts(name: str, lengths: Sequence[int], limit: int | None) -> None:
  """Warns of texts that are longer than a limit.

  Args:
    name: what they are, as in the flag `--<name>_length`.
    lengths: tokens of each text.
    limit: where they are cut; None if they are not.
  """
  cut = sum(limit is not None and length > limit for length in lengths)
  if cut:
    logging.warning(
      '%d of %d %ss are longer than %d tokens and are cut; '
      '--%s_length sets another limit.',
      *(cut, len(lengths), name, limit, name),
    )


def _parse(line: bytes, where: str, fields: Sequence[str]) -> dict[str, Any]:
  try:
    row = json.loads(line.decode('utf-8'))
  except ValueError as error:  # Malformed JSON, or not UTF-8.
    raise errors.DataError(f'{where} is not JSON: {error}.') from error
  if not isinstance(row, dict):
    wanted = ' and '.join(f'"{field}"' for field in fields)
    raise errors.DataError(f'{where} is not an object with {wanted}.')
  for field in fields:
    if not isinstance(row.get(field), str):
      example = ', '.join(f'"{field}": "…"' for field in fields)
      raise errors.DataError(
        f'{where} has no string {field!r}; each line must be {{{example}}}.'
      )
  try:
    json.dumps(row, ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError as error:
    raise errors.DataError(
      f'{where} holds half of a surrogate pair, which is no text; remove it.'
    ) from error
  return row


def _temporary(output: epath.Path) -> epath.Path:
  return output.with_name(output.name + '.tmp')
