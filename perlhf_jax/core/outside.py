"""Environment failures: full disks, lost networks, missing permissions.

Python, Orbax, TensorStore, TensorFlow and fsspec each have their own errors for
them. `failure_of` reads all of these and describes them in the same way.
"""

from collections.abc import Iterator
import dataclasses
import errno
import os
import re
import socket

from perlhf_jax.core import errors
from perlhf_jax.core import user_code

_ROOM = 'Make room there'
_RIGHTS = 'Let this user write there'
_NETWORK = 'The network or the file system behind it did not answer'

# errno -> (what happened, remedy); the remedy is None if it may pass by itself.
_BY_NUMBER = {
  errno.ENOSPC: ('the disk is full', _ROOM),
  errno.EDQUOT: ('the quota of the disk is used up', _ROOM),
  errno.EFBIG: ('a file exceeds the size limit there', 'Raise the limit'),
  errno.EROFS: (
    'the disk is read-only',
    'Have it mounted for writing; a disk that fails often ends up read-only',
  ),
  errno.EACCES: ('permission is denied', _RIGHTS),
  errno.EPERM: ('permission is denied', _RIGHTS),
  errno.ENOENT: (
    'a file or folder does not exist, or no longer',
    'Put it back in its place',
  ),
  errno.ENOTDIR: ('a file is where a folder should be', 'Move it away'),
  errno.EISDIR: ('a folder is where a file should be', 'Move it away'),
  errno.ENAMETOOLONG: ('a name is too long', 'Give a shorter path'),
  errno.EMFILE: ('too many files are open', 'Raise the limit: ulimit -n'),
  errno.ENFILE: ('too many files are open', 'Raise the limit of the machine'),
  errno.ENOMEM: ('the machine has no memory left', 'Give it more'),
  errno.EIO: ('the disk reports an input/output error', None),
  errno.EBUSY: ('a file is in use', None),
  errno.EAGAIN: ('the system lacks a resource', None),
  **dict.fromkeys(
    (
      errno.ESTALE,
      errno.ETIMEDOUT,
      errno.ENOTCONN,
      errno.ECONNRESET,
      errno.ECONNABORTED,
      errno.ECONNREFUSED,
      errno.EHOSTUNREACH,
      errno.EHOSTDOWN,
      errno.ENETDOWN,
      errno.ENETUNREACH,
      errno.ENETRESET,
      errno.EREMOTEIO,
      errno.ENODEV,
      errno.ENXIO,
      errno.ESHUTDOWN,
    ),
    (_NETWORK.lower(), None),
  ),
}
# Status names of gRPC and TensorFlow, for cloud storage.
_BY_STATUS = {
  'RESOURCE_EXHAUSTED': ('the storage is full, or its quota used up', _ROOM),
  'PERMISSION_DENIED': ('permission is denied', _RIGHTS),
  'UNAUTHENTICATED': ('no account is signed in there', 'Sign in'),
  'NOT_FOUND': (
    'a file or folder does not exist, or no longer',
    'Put it back in its place',
  ),
  'UNAVAILABLE': (_NETWORK.lower(), None),
  'DEADLINE_EXCEEDED': (_NETWORK.lower(), None),
  'ABORTED': (_NETWORK.lower(), None),
}
_LATE = (
  'reading or writing did not end in time, or the clock was set forward',
  None,
)
# TensorStore raises system errors as ValueErrors.
_SYSTEM = re.compile(r"\[(?:OS error |os_error_code=')(\d+)")
_STATUS = re.compile(r'([A-Z_]+): .*\b(?:Error|Failed) \w+', re.DOTALL)
_QUOTED_PATH = re.compile(r'"((?:/|\w+://)[^"]*)"')
_FOREIGN_STATUS = ('tensorflow', 'google', 'gcsfs')


@dataclasses.dataclass(frozen=True)
class Failure:
  """An environment failure.

  Attributes:
    what: what happened, as a clause.
    path: the file or folder concerned; None if the error does not name it.
    remedy: what to do, as a sentence without its full stop; None if the failure
      may pass by itself before the next start.
    details: the system's own message.
  """

  what: str
  path: str | None
  remedy: str | None
  details: str

  def __str__(self):
    where = f': {self.path}' if self.path else ''
    details = f' ({self.details})' if self.details else ''
    return f'{self.what}{where}{details}'


def failure_of(error: BaseException) -> Failure | None:
  """Finds the environment failure behind an error.

  Args:
    error: the caught error, or an error raised from it.

  Returns:
    The failure; None for errors of other kinds, such as bugs of this library.
  """
  for each in _behind(error):
    failure = _read(each)
    if failure is not None:
      return failure
  return None


def as_user_error(
  error: BaseException, kept: str = ''
) -> errors.OutsideError | None:
  """Makes a user error from an environment failure.

  Args:
    error: the caught error.
    kept: sentences that say what was kept and how to resume.

  Returns:
    The user error; None if `error` is of another kind.
  """
  failure = failure_of(error)
  if failure is None:
    return None
  text = str(failure)
  sentences = [f'{text[0].upper()}{text[1:]}.']
  if failure.remedy is not None:
    sentences.append(f'{failure.remedy}, then start the command again.')
  else:
    sentences.append('This may pass: start the command again.')
  kind = errors.PassingError if failure.remedy is None else errors.OutsideError
  return kind(' '.join([*sentences, *([kept] if kept else [])]))


def _behind(error: BaseException) -> Iterator[BaseException]:
  """Yields an error and the errors that it was raised from."""
  seen: BaseException | None = user_code.original(error)
  while seen is not None:
    yield seen
    # Libraries raise their own errors while they handle system errors, so
    # follow the context. An error raised that way by our code is its own fault.
    is_theirs = not seen.__suppress_context__ and not user_code.raised_by_us(
      seen
    )
    seen = seen.__cause__ or (seen.__context__ if is_theirs else None)


def _read(error: BaseException) -> Failure | None:
  """Returns the failure that one error reports, if any."""
  if isinstance(error, OSError):
    return _of_system(error)
  text = str(error)
  if isinstance(error, ValueError):
    said = _SYSTEM.search(text)
    if said and int(said[1]) in _BY_NUMBER:
      what, remedy = _BY_NUMBER[int(said[1])]
      return Failure(what, _path_in(text), remedy, os.strerror(int(said[1])))
    status = _STATUS.match(text)
    if status and status[1] in _BY_STATUS and 'Gloo' not in text:
      what, remedy = _BY_STATUS[status[1]]
      return Failure(what, _path_in(text), remedy, _first_line(text))
  if type(error).__module__.split('.')[0] in _FOREIGN_STATUS:
    name = re.sub(r'(?<=[a-z])(?=[A-Z])', '_', type(error).__name__).upper()
    known = _BY_STATUS.get(name.removesuffix('_ERROR'))
    if known:
      return Failure(known[0], _path_in(text), known[1], _first_line(text))
  return None


def _of_system(error: OSError) -> Failure | None:
  """Returns the failure that an OSError reports, if known."""
  path = error.filename
  path = os.fsdecode(path) if isinstance(path, str | bytes) else None
  if error.errno in _BY_NUMBER:
    what, remedy = _BY_NUMBER[error.errno]
    return Failure(what, path, remedy, error.strerror or '')
  # epath raises these without an errno for TensorFlow's errors.
  if isinstance(error, FileNotFoundError):
    what, remedy = _BY_NUMBER[errno.ENOENT]
  elif isinstance(error, PermissionError):
    what, remedy = _BY_NUMBER[errno.EACCES]
  elif isinstance(error, TimeoutError):
    what, remedy = _LATE
  elif isinstance(error, ConnectionError | socket.gaierror):
    what, remedy = _NETWORK.lower(), None
  else:
    return None
  return Failure(what, path, remedy, _first_line(str(error)))


def _path_in(text: str) -> str | None:
  quoted = _QUOTED_PATH.search(text)
  return quoted[1] if quoted else None


def _first_line(text: str) -> str:
  line = (text.strip().splitlines() or [''])[0]
  return line if len(line) <= 200 else line[:200] + '…'
