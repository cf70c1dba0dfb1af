"""Digests of a step, which find damage when the step is read.

When a step is saved, `digests.json` is written beside its items. It holds the
name and size of every file, a digest of every file that holds no arrays, and a
digest of every array, see `array_digests`. The arrays are digested in memory,
so that no file of arrays is read to save a step, and none twice to read it.

The digest of a file is a CRC-32C, which finds every flipped bit, and a sum of
the words. The sum is needed because files that end with their own CRC-32C, as
TensorStore's do, all have the same CRC-32C. Digests find damaged, lost and
swapped files. They are not a signature: an attacker can write both a file and
its digest.
"""

from collections.abc import Iterator, Mapping, Sequence
import errno
import json
import os
from typing import Any, NamedTuple

from etils import epath
import google_crc32c
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json

FILE = 'digests.json'
VARIABLE = 'PERLHF_VERIFY'
OFF = 'off'
STATE = 'state'
METADATA = 'metadata'
METRICS = 'metrics'

_ITEMS = (METADATA, METRICS, STATE)
# The folders in which OCDBT keeps values, at any depth.
_VALUES = 'd'
# Key of the digests of an earlier version, which has none of arrays.
_OF_BLOCKS = 'block_bytes'
_NAMES_SHOWN = 3


class Digests(NamedTuple):
  """Sizes and digests of a step when it was saved.

  Attributes:
    step: number of the step.
    sizes: size in bytes by file name.
    files: hexadecimal digest by file name; files of arrays have none.
    arrays: the result of `array_digests.finish`.
  """

  step: int
  sizes: dict[str, int]
  files: dict[str, str]
  arrays: dict[str, str]


def write(step: epath.Path, number: int, arrays: Mapping[str, str]) -> None:
  """Writes the digests of a step after all its items; one process calls it.

  Args:
    step: folder of the step, which may still have its temporary name.
    number: number of the step.
    arrays: the result of `array_digests.finish` for the step's arrays.

  Raises:
    OSError: a file cannot be read or written.
  """
  sizes = _sizes(step)
  fields = {
    'step': number,
    'files': {
      name: {'bytes': size}
      | ({} if _holds_arrays(name) else {'digest': _digest(step / name)})
      for name, size in sizes.items()
    },
    'arrays': dict(arrays),
  }
  (step / FILE).write_text(json.dumps(fields, indent=1) + '\n')


def read(step: epath.Path) -> Digests | None:
  """Reads the digests of a step; None if it was saved without those of arrays.

  Raises:
    ValueError: the digests are damaged.
    OSError: the digests cannot be read.
  """
  file = step / FILE
  return _parse(file) if file.exists() else None


def find_damage(step: epath.Path, digests: Digests) -> str | None:
  """Finds the files of a step that differ from what was saved.

  Of the files of arrays only names and sizes are checked.

  Args:
    step: folder of the step.
    digests: digests from `read`.

  Returns:
    Names of damaged files and their damage, as text; None without damage.

  Raises:
    OSError: a file cannot be read, for another reason than damage.
  """
  try:
    return _find_damage(step, digests)
  except FileNotFoundError as error:
    return f'{error.filename or error} is missing'
  except OSError as error:
    if error.errno != errno.EIO:
      raise
    return f'the disk cannot read {error.filename}'


def _find_damage(step: epath.Path, digests: Digests) -> str | None:
  found = _sizes(step)
  wrong = [
    *(f'{name} is missing' for name in digests.sizes if name not in found),
    *(
      f'{name} has {found[name]} bytes, not {size}'
      for name, size in digests.sizes.items()
      if found.get(name, size) != size
    ),
    *(f'{name} is not of it' for name in found if name not in digests.sizes),
  ]
  return listed(wrong) or listed(
    [
      f'{name} was changed'
      for name, digest in digests.files.items()
      if digest != _digest(step / name)
    ]
  )


def is_off() -> bool:
  """Whether the user turned the check of the arrays' contents off.

  Raises:
    ConfigError: PERLHF_VERIFY is neither `off` nor unset.
  """
  given = os.environ.get(VARIABLE, '')
  if given not in ('', OFF):
    raise errors.ConfigError(
      f'{VARIABLE} is {given!r}. Set it to {OFF}, and checkpoints are read '
      'without a check of their contents; or do not set it.'
    )
  return given == OFF


def listed(wrong: Sequence[str]) -> str | None:
  """Joins what is wrong, the first few; None if nothing is."""
  shown = ', '.join(wrong[:_NAMES_SHOWN])
  rest = len(wrong) - _NAMES_SHOWN
  return f'{shown} and {rest} more' if rest > 0 else shown or None


def _holds_arrays(name: str) -> bool:
  item, *folders, _ = name.split('/')
  return item == STATE and _VALUES in folders


def _sizes(step: epath.Path) -> dict[str, int]:
  """Returns the sizes of the files of a step's items.

  Other files in the folder belong to Orbax or the user, and are not read.
  """
  return {
    f'{item}/{name}': size
    for item in _ITEMS
    if (step / item).is_dir()
    for name, size in sorted(_walk(step / item))
  }


def _walk(folder: epath.Path) -> Iterator[tuple[str, int]]:
  """Yields names and sizes of the files in a folder, at any depth.

  Hidden files, which file managers and network disks leave, are skipped.
  """
  for path in folder.iterdir():
    if path.name.startswith('.'):
      continue
    if path.is_dir():
      for name, size in _walk(path):
        yield f'{path.name}/{name}', size
    else:
      yield path.name, _size(path)


def _size(path: epath.Path) -> int:
  if '://' in os.fspath(path):
    return path.stat().length
  # etils raises a KeyError if the system does not know the file's owner.
  return os.stat(path).st_size


def _digest(file: epath.Path) -> str:
  data = file.read_bytes()
  return f'{google_crc32c.value(data):08x}{_sum(data):016x}'


def _sum(data: bytes) -> int:
  """Sums little-endian 64-bit words modulo 2**64; zeros pad the last word."""
  words = np.frombuffer(data + bytes(-len(data) % 8), '<u8')
  return int(np.sum(words, dtype=np.uint64))


def _parse(file: epath.Path) -> Digests | None:
  """Reads a file of `write`; any other content is a ValueError."""
  try:
    fields = strict_json.loads(plain_files.read(file, errors.CheckpointError))
    if _OF_BLOCKS in fields:
      return None
    step, files = _checked(fields['step'], int), fields['files']
    sizes = {name: _checked(each['bytes'], int) for name, each in files.items()}
    contents = {
      name: _checked(each['digest'], str)
      for name, each in files.items()
      if not _holds_arrays(name)
    }
    arrays = {
      name: _checked(digest, str) for name, digest in fields['arrays'].items()
    }
  except errors.CheckpointError as error:
    raise ValueError(str(error)) from error
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(f'it holds other things ({error!r})') from error
  return Digests(step, sizes, contents, arrays)


def _checked(value: Any, kind: type) -> Any:
  if type(value) is not kind:
    raise ValueError(f'{value!r} in the place of a {kind.__name__}')
  return value
