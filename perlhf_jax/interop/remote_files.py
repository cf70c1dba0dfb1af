"""Local copies of remote files, for readers that need local files.

A copy is in the temporary folder (TMPDIR). Its name is made from the address
and the files' sizes and times, so that later processes reuse it, and make a new
copy if the files have changed. A copy gets its name when it is complete. One
process per machine makes it, while the others wait.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
import time

from absl import logging
from etils import epath

from perlhf_jax.core import errors

_FILES_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class _File:
  """A remote file.

  Attributes:
    name: name in the directory.
    size: size in bytes.
    mtime: seconds since the epoch; 0 if unknown.
  """

  name: str
  size: int
  mtime: int


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path is an address such as `gs://bucket/folder`."""
  return '://' in os.fspath(path)


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
  """Turns errors from a remote path into `CheckpointError`s.

  Errors from local paths pass unchanged.

  Raises:
    CheckpointError: any error of the block that is not a `UserError`.
  """
  try:
    yield
  except errors.UserError:
    raise
  # Every file system has its own exception classes.
  except Exception as error:
    if not is_remote(path):
      raise
    raise errors.CheckpointError(
      f'{os.fspath(path)} cannot be read or copied ({type(error).__name__}: '
      f'{error}). Check that the address is right, and that this machine '
      'reaches it and may read it; or copy the directory to a local one and '
      'give that.'
    ) from error


@contextlib.contextmanager
def named(
  path: str | os.PathLike[str], copy: str | os.PathLike[str]
) -> Iterator[None]:
  """Adds the original path to `UserError`s about a copy."""
  try:
    yield
  except errors.UserError as error:
    if is_remote(path):
      error.args = (
        f'{error} ({os.fspath(copy)} is a copy of {os.fspath(path)}; correct '
        'the original files.)',
      )
    raise


def copy_of(directory: epath.Path, names: Sequence[str]) -> epath.Path:
  """Copies files of a remote directory, unless a copy exists.

  Args:
    directory: remote directory.
    names: names of files in the directory, without folders.

  Returns:
    A local directory with these files.

  Raises:
    CheckpointError: a file is missing or cannot be read, or the copy does not
      fit on the disk.
  """
  with explained(directory):
    files = [_look_up(directory, name) for name in names]
  # Part of the copy's name, for users.
  readable = re.sub(r'[^\w.-]+', '_', os.fspath(directory))[-100:]
  content = repr((os.fspath(directory), sorted(map(str, files))))
  digest = hashlib.sha256(content.encode()).hexdigest()[:12]
  target = _folder() / f'{readable}-{digest}'
  with _one_at_a_time(target):
    if _is_complete(target, files):
      logging.info('Reading %s from its copy in %s.', directory, target)
    else:
      _copy(directory, files, target)
  return epath.Path(target)


def _look_up(directory: epath.Path, name: str) -> _File:
  try:
    found = (directory / name).stat()
  except FileNotFoundError as error:
    raise errors.CheckpointError(
      f'{directory} lacks {name}; copy the missing file there.'
    ) from error
  return _File(name, found.length, found.mtime)


def _folder() -> pathlib.Path:
  # Each user of the machine has a folder.
  folder = pathlib.Path(tempfile.gettempdir()) / f'perlhf_jax-{os.getuid()}'
  try:
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
      raise PermissionError('it belongs to another user')
  except OSError as error:
    raise errors.CheckpointError(
      f'Remote files are copied to {folder}, which cannot be used ({error}). '
      'Set TMPDIR to a local folder that can be written to.'
    ) from error
  return folder


@contextlib.contextmanager
def _one_at_a_time(target: pathlib.Path) -> Iterator[None]:
  """Waits for other processes and threads that make the same copy."""
  # The system releases the lock of a process that dies.
  with open(f'{target}.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('Waiting for another process that copies to %s.', target)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _is_complete(target: pathlib.Path, files: Sequence[_File]) -> bool:
  # A crash, or a clean-up of the temporary folder, can leave only some of the
  # files, or parts of them.
  paths = [target / file.name for file in files]
  return all(path.is_file() for path in paths) and all(
    path.stat().st_size == file.size
    for path, file in zip(paths, files, strict=True)
  )


def _copy(
  directory: epath.Path, files: Sequence[_File], target: pathlib.Path
) -> None:
  # Only the process that holds the lock gets here, so an existing partial copy
  # was left by a process that died.
  partial = pathlib.Path(f'{target}.partial')
  for left in (partial, target):
    if left.exists():
      shutil.rmtree(left)
  size = sum(file.size for file in files)
  _check_room(directory, size, target.parent)
  logging.info(
    'Copying %d files (%s) of %s to %s.',
    len(files),
    _readable(size),
    directory,
    target,
  )
  start = time.monotonic()
  partial.mkdir()
  try:
    with (
      explained(directory),
      futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool,
    ):
      # Reading the results raises errors.
      list(pool.map(lambda file: _copy_file(directory, file, partial), files))
    partial.rename(target)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  logging.info(
    'Copied %s in %.0f seconds.', directory, time.monotonic() - start
  )


def _copy_file(
  directory: epath.Path, file: _File, target: pathlib.Path
) -> None:
  copy = target / file.name
  (directory / file.name).copy(copy)
  copied = copy.stat().st_size
  if copied != file.size:
    raise errors.CheckpointError(
      f'{directory / file.name} has {file.size} bytes, but only {copied} were '
      'copied; if no process is writing there, start again.'
    )


def _check_room(directory: epath.Path, size: int, folder: pathlib.Path) -> None:
  free = shutil.disk_usage(folder).free
  if size > free:
    raise errors.CheckpointError(
      f'{directory} is copied to {folder} before it is read, and needs '
      f'{_readable(size)} there, but only {_readable(free)} are free. Set '
      'TMPDIR to a folder on a larger disk, or remove old copies from that '
      'folder.'
    )


def _readable(size: int) -> str:
  for unit, scale in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
    if size >= scale:
      return f'{size / scale:.1f} {unit}'
  return f'{size} bytes'
