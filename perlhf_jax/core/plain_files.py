"""Files that can be read to their end: no pipe, no device, not too large.

A name in a data file or a checkpoint can be that of anything. `open` waits for
ever for the other end of a named pipe, and /dev/zero has no end.
"""

import os
import stat

from etils import epath

from perlhf_jax.core import errors

# Of text that is parsed as a whole: configurations, indices, metadata.
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
  """Says why a file cannot be read to its end; None if it can.

  Nothing is opened. A file that does not exist has no problem of this kind.

  Args:
    path: local or remote; links are followed.
    most_bytes: the largest size allowed; None for any.
    pipes: whether a named pipe will do, of somebody who named it himself.
  """
  name = os.fspath(path)
  try:
    if '://' in name:
      # Buckets hold files only, and asking for a size is a request.
      size = 0 if most_bytes is None else epath.Path(name).stat().length
    else:
      found = os.stat(name)
      kind = _KINDS.get(stat.S_IFMT(found.st_mode))
      if kind is not None and not (pipes and stat.S_ISFIFO(found.st_mode)):
        return f'it is {kind}, not a file'
      size = found.st_size
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:  # ValueError of a name with a NUL.
    return str(error)
  if most_bytes is not None and size > most_bytes:
    return f'it has {size:,} bytes; at most {most_bytes:,} are read'
  return None


def check(
  path: str | os.PathLike[str],
  error: type[errors.UserError],
  most_bytes: int | None = None,
) -> None:
  """Makes sure that a file can be read to its end; see `find_problem`.

  Args:
    path: local or remote.
    error: what to raise.
    most_bytes: the largest size allowed; None for any.

  Raises:
    UserError: of the class `error`.
  """
  problem = find_problem(path, most_bytes)
  if problem is not None:
    raise error(f'{os.fspath(path)} cannot be read: {problem}.')


def read(
  path: str | os.PathLike[str],
  error: type[errors.UserError],
  most_bytes: int = MAX_TEXT_BYTES,
  *,
  pipes: bool = False,
) -> bytes:
  """Returns the content of a file.

  Args:
    path: local or remote.
    error: what to raise for a file that `find_problem` finds fault with.
    most_bytes: the largest size allowed.
    pipes: as of `find_problem`.

  Raises:
    OSError: it does not exist or cannot be opened.
    UserError: of the class `error`; it has no end, or is too large.
  """
  problem = find_problem(path, most_bytes, pipes=pipes)
  if problem is None:
    with epath.Path(path).open('rb') as file:
      # One more, for a file that grew or whose size is not known.
      content = file.read(most_bytes + 1)
    if len(content) <= most_bytes:
      return content
    problem = f'it has more than {most_bytes:,} bytes'
  raise error(f'{os.fspath(path)} cannot be read: {problem}.')
