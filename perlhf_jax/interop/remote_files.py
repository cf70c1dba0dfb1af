"""Copies of remote files on this machine, for readers of local files only.

A copy lies in the temporary folder (TMPDIR) under a name made of the address
and of the files' sizes and times, so that a later process finds it again, and
makes another one if the files have changed. It gets its name when it is
complete, and one process of a machine makes it while the others wait.
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
    name: in its directory.
    size: bytes.
    mtime: seconds since the epoch; 0 if the file system does not say.
  """

  name: str
  size: int
  mtime: int


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path is an address such as `gs://bucket/folder`."""
  return '://' in os.fspath(path)


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
  """Makes errors of reading a remote path a user's; local ones stay.

  Raises:
    CheckpointError: in place of any error but a `UserError`.
  """
  try:
    yield
  except errors.UserError:
    raise
  # Every file system has exception classes of its own.
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
  """Says in a user's errors about a copy what it is a copy of."""
  try:
    yield
  except errors.UserError as error:
    if is_remote(path):
      error.args = (
        f'{error} ({os.fspath(copy)} is a copy of {os.fspath(path)}: it is '
        'there that files must be corrected.)',
      )
    raise


def copy_of(directory: epath.Path, names: Sequence[str]) -> epath.Path:
  """Copies files of a remote directory, unless they have been already.

  Args:
    directory: remote.
    names: of files in it, without folders.

  Returns:
    A local directory with these files.

  Raises:
    CheckpointError: a file is missing or cannot be read, or there is no room.
  """
  with explained(directory):
    files = [_look_up(directory, name) for name in names]
  # A name that tells the user what it is.
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
  # Other users of the machine have folders of their own.
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
  """Waits for other processes, and threads, that make the same copy."""
  # The system takes the lock back from a process that dies.
  with open(f'{target}.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('Waiting for another process, which copies to %s.', target)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _is_complete(target: pathlib.Path, files: Sequence[_File]) -> bool:
  # A machine that crashed, or one that tidies its temporary folder, can leave
  # some of the files, or parts of them.
  paths = [target / file.name for file in files]
  return all(path.is_file() for path in paths) and all(
    path.stat().st_size == file.size
    for path, file in zip(paths, files, strict=True)
  )


def _copy(
  directory: epath.Path, files: Sequence[_File], target: pathlib.Path
) -> None:
  # Only the process that holds the lock gets here: what is there was left by
  # one that died.
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
      # A list, because errors come with results.
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
      f'{directory / file.name} has {file.size} bytes, of which {copied} were '
      'copied; if nothing is being written there, start again.'
    )


def _check_room(directory: epath.Path, size: int, folder: pathlib.Path) -> None:
  free = shutil.disk_usage(folder).free
  if size > free:
    raise errors.CheckpointError(
      f'{directory} is copied to {folder} before it is read, and needs '
      f'{_readable(size)} there, where {_readable(free)} are free. Set TMPDIR '
      'to a folder on a larger disk, or remove copies in that folder that are '
      'not needed any more.'
    )


def _readable(size: int) -> str:
  for unit, scale in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
    if size >= scale:
      return f'{size / scale:.1f} {unit}'
  return f'{size} bytes'
