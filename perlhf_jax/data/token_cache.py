"""Caches the tokens of a task, so that the next start only reads arrays.

An entry is a folder, which gets its name when it is complete. It holds arrays,
their checksums, and the identity of their sources (`token_identity`).
"""

from concurrent import futures
import hashlib
import json
import math
import os
import pathlib
import time
from typing import Any

from absl import logging
import google_crc32c
import numpy as np
import seqio

from perlhf_jax.core import start_cache
from perlhf_jax.core import strict_json
from perlhf_jax.data import function_digest
from perlhf_jax.data import task_reader
from perlhf_jax.data import task_rows
from perlhf_jax.data import token_columns
from perlhf_jax.data import token_identity

_PART = 'tokens'
_MANIFEST = 'manifest.json'
_MOST_BYTES = 16 << 30
# Tasks that are read faster than this are not cached.
_LEAST_SECONDS = 1.0
# From this time on, the log says why the task is not cached.
_LONG_SECONDS = 10.0
# Threads share the blocks of an array: new memory costs more than reading.
_BLOCK_BYTES = 16 << 20
# Fits a core's cache.
_SUMMED_BYTES = 1 << 20


def read(
  reader: task_reader.TaskReader, task: seqio.Task
) -> task_rows.TaskRows:
  """Reads a task as `reader.read` does, from the cache if possible."""
  folder = start_cache.folder(_PART)
  if folder is None:
    return reader.read(task)
  label = f'{task.name}/{reader.config.split}'
  identity, reason = None, ''
  try:
    identity = token_identity.describe(reader, task)
  except function_digest.UnknownError as error:
    reason = str(error)
  if identity is not None:
    entry = folder / hashlib.sha256(identity.encode()).hexdigest()[:32]
    rows = _load(entry, identity)
    if rows is not None:
      logging.info(
        '%s: using the tokens of an earlier start, in %s', label, entry
      )
      return rows
  start = time.monotonic()
  rows = reader.read(task)
  seconds = time.monotonic() - start
  if identity is None:
    if seconds > _LONG_SECONDS:
      logging.info(
        '%s: %.0f s to read and tokenise; not kept for the next start, because'
        ' %s.',
        *(label, seconds, reason),
      )
  elif seconds >= _LEAST_SECONDS and _is_still(identity, reader, task):
    _save(entry, identity, rows)
  return rows


def _is_still(
  identity: str, reader: task_reader.TaskReader, task: seqio.Task
) -> bool:
  """Whether nothing changed while the task was read."""
  try:
    return token_identity.describe(reader, task) == identity
  except function_digest.UnknownError:
    return False


def _save(entry: pathlib.Path, identity: str, rows: task_rows.TaskRows) -> None:
  """Writes an entry; only warns if it cannot be written."""
  manifest = {
    'identity': identity,
    'num_read': rows.num_read,
    'reasons': list(rows.reasons.items()),
    'first_bad': list(rows.first_bad.items()),
    'truncated': list(rows.truncated.items()),
    'lists': rows.lists,
  }
  # A draft of its own, since another process may write the same entry.
  draft = entry.with_name(f'.{entry.name}.{os.getpid()}.{time.time_ns()}')
  try:
    draft.mkdir()
    sums = {n: _write(draft, n, a) for n, a in _arrays(rows).items()}
    text = json.dumps(manifest | {'arrays': sums})
    (draft / _MANIFEST).write_text(text, encoding='utf-8')
    try:
      draft.rename(entry)
    except OSError:
      if not entry.is_dir():
        raise
      start_cache.remove(draft)  # Another process was faster.
    start_cache.prune(entry.parent, _MOST_BYTES)
  except (OSError, ValueError) as error:
    start_cache.remove(draft)
    logging.warning(
      'The tokens are not kept for the next start: %s cannot be written (%s).',
      *(entry, error),
    )


def _load(entry: pathlib.Path, identity: str) -> task_rows.TaskRows | None:
  """Reads an entry; None if it does not exist or is unusable."""
  try:
    if not entry.exists():
      return None
    manifest = strict_json.loads((entry / _MANIFEST).read_bytes())
    if manifest['identity'] != identity:
      raise ValueError('it belongs to other data')
    arrays = {n: _read(entry, n, s) for n, s in manifest['arrays'].items()}
    rows = _rows(manifest, arrays)
    os.utime(entry)
  # All errors that a damaged file may cause.
  except (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
  ) as error:
    logging.warning(
      '%s is damaged (%s); the tokens are made again.', entry, error
    )
    start_cache.remove(entry)
    return None
  return rows


def _arrays(rows: task_rows.TaskRows) -> dict[str, np.ndarray]:
  """Returns the arrays that an entry holds, by name."""
  arrays = {f'number.{name}': array for name, array in rows.numbers.items()}
  for name, column in rows.tokens.items():
    arrays[f'values.{name}'] = column.values
    arrays[f'ends.{name}'] = column.ends
  if any('\0' in origin for origin in rows.origins):
    raise ValueError('the origin of a row holds a null character')
  text = '\0'.join(rows.origins).encode('utf-8', 'surrogatepass')
  arrays['origins'] = np.frombuffer(text, np.uint8)
  return arrays


def _rows(manifest: Any, arrays: dict[str, np.ndarray]) -> task_rows.TaskRows:
  """Makes rows from the manifest and arrays of an entry."""

  def named(prefix):
    return {
      name.removeprefix(prefix): array
      for name, array in arrays.items()
      if name.startswith(prefix)
    }

  text = arrays['origins'].tobytes().decode('utf-8', 'surrogatepass')
  ends = named('ends.')
  rows = task_rows.TaskRows(
    tokens={
      name: token_columns.TokenColumn.from_arrays(values, ends[name])
      for name, values in named('values.').items()
    },
    numbers=named('number.'),
    lists=manifest['lists'],
    origins=text.split('\0') if ends['inputs'].size else [],
    num_read=manifest['num_read'],
  )
  rows.reasons.update(dict(manifest['reasons']))
  rows.first_bad.update(dict(manifest['first_bad']))
  rows.truncated.update(dict(manifest['truncated']))
  return rows


def _write(folder: pathlib.Path, name: str, array: np.ndarray) -> int:
  """Writes an array, and returns its checksum."""
  np.save(folder / f'{name}.npy', array, allow_pickle=False)
  return _checksum(array)


def _read(folder: pathlib.Path, name: str, checksum: int) -> np.ndarray:
  """Reads an array.

  Raises:
    ValueError: the array is not the one that was written.
  """
  path = folder / f'{name}.npy'
  with path.open('rb') as file:
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    start = file.tell()
  if dtype.hasobject or (
    start + math.prod(shape) * dtype.itemsize != path.stat().st_size
  ):
    raise ValueError(f'{name} has another size')
  array = np.empty(shape, dtype)
  content = _bytes(array)

  def read(begin: int) -> None:
    with path.open('rb', buffering=0) as file:
      file.seek(start + begin)
      block = memoryview(content)[begin : begin + _BLOCK_BYTES]
      while block:
        count = file.readinto(block)
        if not count:
          raise ValueError(f'{name} ends too early')
        block = block[count:]

  with futures.ThreadPoolExecutor(os.cpu_count()) as executor:
    list(executor.map(read, range(0, content.size, _BLOCK_BYTES)))
  if _checksum(array) != checksum:
    raise ValueError(f'{name} has another checksum')
  return array


def _bytes(array: np.ndarray) -> np.ndarray:
  """Returns a contiguous array as a flat array of its bytes."""
  return array.reshape(-1).view(np.uint8)


def _checksum(array: np.ndarray) -> int:
  """Returns the CRC-32C of an array's dtype, shape and content."""
  crc = google_crc32c.value(f'{array.dtype.str} {array.shape}'.encode())
  content = _bytes(np.ascontiguousarray(array))
  for begin in range(0, content.size, _SUMMED_BYTES):
    block = content[begin : begin + _SUMMED_BYTES].tobytes()
    crc = google_crc32c.extend(crc, block)
  return crc
