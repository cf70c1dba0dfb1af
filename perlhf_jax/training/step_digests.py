"""Digests of a step's files, which find damage before the step is read.

When a step is saved, `digests.json` is written beside its items, with the size
of every file and a digest of every block of every file. A digest is a CRC-32C,
which finds every flipped bit, and a sum of the words. The sum is needed because
files that end with their own CRC-32C, as TensorStore's do, all have the same
CRC-32C. Digests find damaged, lost and swapped files. They are not a signature:
an attacker can write both a file and its digest.

Each process digests the files that it wrote, once they are on disk and before
the step gets its final name. So no process reads another process's files. When
a step is read, the processes share the blocks to check.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
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
_PART = 'digests.process_'
# Threads and processes share blocks, since one file may hold most of a step.
_BLOCK_BYTES = 64 << 20
# Fits a core's cache, so that the checksum reads from the cache.
_READ_BYTES = 1 << 20
_THREADS = 8
_NAMES_SHOWN = 3


class _Block(NamedTuple):
  """A block of a file: the file's name in the step's folder, and an index."""

  name: str
  index: int


class Digests(NamedTuple):
  """Sizes and digests of a step's files when it was saved.

  Attributes:
    step: number of the step.
    sizes: size in bytes by file name.
    blocks: hexadecimal digest of each block, by file name.
  """

  step: int
  sizes: dict[str, int]
  blocks: dict[str, list[str]]


def write(step: epath.Path, number: int) -> None:
  """Writes the digests of a step after all its items; one process calls it.

  Args:
    step: folder of the step, which may still have its temporary name.
    number: number of the step.

  Raises:
    OSError: a file cannot be read or written.
  """
  sizes = _sizes(step)
  blocks: dict[str, list[str]] = {}
  for file in _files(step):
    if file.name.startswith(_PART):
      part = _parse(file)
      # Files whose size has changed since are digested again.
      same = {n for n, size in part.sizes.items() if sizes.get(n) == size}
      blocks |= {name: part.blocks[name] for name in same}
      file.unlink()
  missing = {name: size for name, size in sizes.items() if name not in blocks}
  blocks |= _digest_files(step, missing)
  _write_json(step / FILE, Digests(number, sizes, blocks))


def write_part(
  step: epath.Path, number: int, state: epath.Path, process: int
) -> None:
  """Writes the digests of the arrays that one process has written.

  Args:
    step: folder of the step, still with its temporary name.
    number: number of the step.
    state: folder of the step's arrays, still with its temporary name.
    process: index of the process.

  Raises:
    OSError: a file cannot be read or written.
  """
  own = f'ocdbt.process_{process}'
  if not (state / own).is_dir():
    return
  inside = {f'{own}/{name}': size for name, size in _walk(state / own)}
  blocks = _digest_files(state, inside)
  digests = Digests(
    number,
    {f'{STATE}/{name}': size for name, size in inside.items()},
    {f'{STATE}/{name}': each for name, each in blocks.items()},
  )
  _write_json(step / f'{_PART}{process}', digests)


def read(step: epath.Path) -> Digests | None:
  """Reads the digests of a step; None if it was saved without.

  Raises:
    ValueError: the digests are damaged.
    OSError: the digests cannot be read.
  """
  file = step / FILE
  return _parse(file) if file.exists() else None


def find_damage(
  step: epath.Path,
  digests: Digests,
  *,
  contents: bool,
  process: int = 0,
  processes: int = 1,
) -> str | None:
  """Finds the files of a step that differ from what was saved.

  Args:
    step: folder of the step.
    digests: digests from `read`.
    contents: whether to read the arrays, too; otherwise only the names and
      sizes of their files are checked.
    process: index of the share of the blocks to read.
    processes: number of shares.

  Returns:
    Names of damaged files and their damage, as text; None without damage.

  Raises:
    OSError: a file cannot be read, for another reason than damage.
  """
  try:
    return _find_damage(
      step, digests, contents, slice(process, None, processes)
    )
  except FileNotFoundError as error:
    return f'{error.filename or error} is missing'
  except OSError as error:
    if error.errno != errno.EIO:
      raise
    return f'the disk cannot read {error.filename}'


def _find_damage(
  step: epath.Path, digests: Digests, contents: bool, share: slice
) -> str | None:
  found = _sizes(step)
  wrong = [
    *(f'{name} is missing' for name in digests.sizes if name not in found),
    *(
      f'{name} has {found[name]} bytes, not {size}'
      for name, size in digests.sizes.items()
      if found.get(name, size) != size
    ),
    *(
      f'{name} does not belong to it'
      for name in found
      if name not in digests.sizes
    ),
  ]
  if wrong:
    return _listed(wrong)
  blocks = [
    block
    for block in _blocks(digests.sizes)
    if contents or not block.name.startswith(f'{STATE}/')
  ][share]
  changed = {
    block.name: None
    for block, digest in zip(blocks, _digest(step, blocks), strict=True)
    if digests.blocks[block.name][block.index] != digest
  }
  return _listed([f'{name} was changed' for name in changed])


def is_off() -> bool:
  """Whether the user turned the check of the arrays' contents off.

  Raises:
    ConfigError: PERLHF_VERIFY is neither `off` nor unset.
  """
  given = os.environ.get(VARIABLE, '')
  if given not in ('', OFF):
    raise errors.ConfigError(
      f'{VARIABLE} is {given!r}. Set it to {OFF} to read checkpoints without '
      'checking their contents, or do not set it.'
    )
  return given == OFF


def _listed(wrong: Sequence[str]) -> str | None:
  shown = ', '.join(wrong[:_NAMES_SHOWN])
  rest = len(wrong) - _NAMES_SHOWN
  return f'{shown} and {rest} more' if rest > 0 else shown or None


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  return (path for path in folder.iterdir() if not path.is_dir())


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


def _blocks(sizes: dict[str, int]) -> Iterator[_Block]:
  for name, size in sizes.items():
    for index in range(_count(size)):
      yield _Block(name, index)


def _count(size: int) -> int:
  """Returns the number of blocks of a file of `size` bytes."""
  return -(-size // _BLOCK_BYTES)


def _digest_files(
  folder: epath.Path, sizes: dict[str, int]
) -> dict[str, list[str]]:
  """Digests whole files; returns the blocks of each."""
  blocks = list(_blocks(sizes))
  found: dict[str, list[str]] = {name: [] for name in sizes}
  for block, digest in zip(blocks, _digest(folder, blocks), strict=True):
    found[block.name].append(digest)
  return found


def _digest(folder: epath.Path, blocks: Sequence[_Block]) -> list[str]:
  def one(block: _Block) -> str:
    crc, total, left = 0, 0, _BLOCK_BYTES
    with (folder / block.name).open('rb') as file:
      file.seek(block.index * _BLOCK_BYTES)
      while left and (data := file.read(min(left, _READ_BYTES))):
        crc = google_crc32c.extend(crc, data)
        total += _sum(data)
        left -= len(data)
    return f'{crc:08x}{total % 2**64:016x}'

  if len(blocks) < 2:
    return [one(block) for block in blocks]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(one, blocks))


def _sum(data: bytes) -> int:
  """Sums little-endian 64-bit words modulo 2**64; zeros pad the last word."""
  words = np.frombuffer(
    data + bytes(-len(data) % 8) if len(data) % 8 else data, '<u8'
  )
  return int(np.sum(words, dtype=np.uint64))


def _write_json(file: epath.Path, digests: Digests) -> None:
  fields = {
    'step': digests.step,
    'block_bytes': _BLOCK_BYTES,
    'files': {
      name: {'bytes': size, 'blocks': digests.blocks[name]}
      for name, size in digests.sizes.items()
    },
  }
  file.write_text(json.dumps(fields, indent=1) + '\n')


def _parse(file: epath.Path) -> Digests:
  """Reads a file of `_write_json`; any other content is a ValueError."""
  try:
    fields = strict_json.loads(plain_files.read(file, errors.CheckpointError))
    step, files = _checked(fields['step'], int), fields['files']
    sizes = {name: _checked(each['bytes'], int) for name, each in files.items()}
    blocks = {
      name: [_checked(digest, str) for digest in each['blocks']]
      for name, each in files.items()
    }
    if fields['block_bytes'] != _BLOCK_BYTES:
      raise ValueError('blocks of another size')
    if any(len(blocks[name]) != _count(size) for name, size in sizes.items()):
      raise ValueError('a file has too many digests, or too few')
  except errors.CheckpointError as error:
    raise ValueError(str(error)) from error
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(f'it holds other things ({error!r})') from error
  return Digests(step, sizes, blocks)


def _checked(value: Any, kind: type) -> Any:
  if type(value) is not kind:
    raise ValueError(f'{value!r} instead of a {kind.__name__}')
  return value
