"""The folder that caches data for faster starts of commands.

`PERLHF_START_CACHE` names it, or switches it off. Its readers make entries
again that are missing, damaged or of something else.
"""

from collections.abc import Iterator
import os
import pathlib
import shutil
import tempfile

from absl import logging

VARIABLE = 'PERLHF_START_CACHE'
OFF = 'off'

# Folders that cannot be written and have been warned about.
_told: set[str] = set()


def folder(part: str) -> pathlib.Path | None:
  """Makes and returns the cache folder for one kind of entry.

  Args:
    part: name of the kind, such as `tokens`.

  Returns:
    A writable local folder; None if the cache is off. If the folder cannot be
    written, logs a warning and returns None.
  """
  given = os.environ.get(VARIABLE, '')
  if given == OFF:
    return None
  try:
    if '://' in given:
      raise OSError('it must be a folder of this machine')
    root = pathlib.Path(given) if given else _default()
    found = root.absolute() / part
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=found):
      pass
  except (OSError, RuntimeError) as error:
    _warn_once(given or '~/.cache/perlhf_jax', error)
    return None
  return found


def _warn_once(name: str, error: Exception) -> None:
  if name in _told:
    return
  _told.add(name)
  logging.warning(
    'Nothing is kept for the next start, because %s cannot be written (%s).'
    ' Name another folder with the environment variable %s, or set it to %s.',
    *(name, error, VARIABLE, OFF),
  )


def prune(place: pathlib.Path, most_bytes: int) -> None:
  """Removes the least recently used entries, until a folder is small enough.

  Args:
    place: the folder; an entry is a file, or a folder of files whose
      modification time is set when it is used.
    most_bytes: the largest total size of the remaining entries.
  """
  entries = []
  for path in place.iterdir():
    try:
      status = path.stat()
      # For a folder ignore the access time, which listing it updates.
      is_folder = path.is_dir()
      used = max(status.st_mtime, 0 if is_folder else status.st_atime)
      size = sum(each.stat().st_size for each in _files(path))
    except OSError:  # Another process removed it.
      continue
    entries.append((used, size, path))
  total = sum(size for _, size, _ in entries)
  for _, size, path in sorted(entries):
    if total <= most_bytes:
      return
    remove(path)
    total -= size


def remove(path: pathlib.Path) -> None:
  """Removes an entry; it need not exist any more."""
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def _files(path: pathlib.Path) -> Iterator[pathlib.Path]:
  if path.is_dir():
    yield from path.iterdir()
  else:
    yield path


def _default() -> pathlib.Path:
  caches = os.environ.get('XDG_CACHE_HOME')
  base = pathlib.Path(caches) if caches else pathlib.Path.home() / '.cache'
  return base / 'perlhf_jax'
