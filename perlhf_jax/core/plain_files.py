"""Checks that a path is a plain file: no pipe, no device, not too large.

A data file or a checkpoint can contain any path. `open` waits for ever for the
other end of a named pipe, and /dev/zero has no end.
"""

import os
import stat

from etils import epath

from perlhf_jax.core import errors

# Limit for text files that are parsed whole: configurations, indices, metadata.
MAX_TEXT_BYTES = 256 * 1024**2

_KINDS = {
  stat.S_IFIFO: 'a named pipe',
  stat.S_IFSOCK: 'a socket',
  stat.S_IFCHR: 'a device',
  stat.S_IFBLK: 'a device',
  stat.S_IFDIR: 'a folder',
}


def find_problem(
  path: str | os.PathLike[str],
  most_bytes: int | None = None,
  *,
  pipes: bool = False,
) -> str | None:
  """Returns why a file cannot be read to its end; None if it can.

  It does not open the file. A missing file gives None.

  Args:
    path: local or remote path; links are followed.
    most_bytes: the largest size allowed; None for any.
    pipes: whether a named pipe is allowed, for paths that the user gave.
  """
  name = os.fspath(path)
  try:
    if '://' in name:
      # Buckets hold only files; asking for the size costs a request.
      size = 0 if most_bytes is None else epath.Path(name).stat().length
    else:
      found = os.stat(name)
      kind = _KINDS.get(stat.S_IFMT(found.st_mode))
      if kind is not None and not (pipes and stat.S_ISFIFO(found.st_mode)):
        return f'it is {kind}, not a file'
      size = found.st_size
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:  # ValueError for a path with a NUL.
    return str(error)
  if most_bytes is not None and size > most_bytes:
    return f'it has {size:,} bytes; at most {most_bytes:,} are read'
  return None


def check(
  path: str | os.PathLike[str],
  error: type[errors.UserError],
  most_bytes: int | None = None,
) -> None:
  """Raises an error if a file cannot be read to its end; see `find_problem`.

  Args:
    path: local or remote path.
    error: class of the error to raise.
    most_bytes: the largest size allowed; None for any.

  Raises:
    UserError: of the class `error`.
  """
  problem = find_problem(path, most_bytes)
  if problem is not None:
    raise error(_refusal(path, problem))


def read(
  path: str | os.PathLike[str],
  error: type[errors.UserError],
  most_bytes: int = MAX_TEXT_BYTES,
  *,
  pipes: bool = False,
) -> bytes:
  """Returns the content of a file.

  Args:
    path: local or remote path.
    error: class of the error to raise for a problem; see `find_problem`.
    most_bytes: the largest size allowed.
    pipes: as in `find_problem`.

  Raises:
    OSError: the file does not exist or cannot be opened.
    UserError: of the class `error`; the file is not a plain file or is too
      large.
  """
  problem = find_problem(path, most_bytes, pipes=pipes)
  if problem is None:
    with epath.Path(path).open('rb') as file:
      # One byte more detects a file that grew or has an unknown size.
      content = file.read(most_bytes + 1)
    if len(content) <= most_bytes:
      return content
    problem = f'it has more than {most_bytes:,} bytes'
  raise error(_refusal(path, problem))


def _refusal(path: str | os.PathLike[str], problem: str) -> str:
  return (
    f'{os.fspath(path)} cannot be read: {problem}. Put the right file in its '
    'place.'
  )
