"""Where compiled programs are kept from one run of the suite to the next.

JAX names a program by what it computes, the flags and the compiler, so that a
program of an older commit is found only by whoever would compile the same.
"""

import atexit
import hashlib
import pathlib
import shutil
import tempfile
import zlib

_FOLDER = pathlib.Path(__file__).parents[2] / '.pytest_cache' / 'd' / 'programs'
_MOST_BYTES = 1 << 30
# Written when the others were found to be whole.
_CHECKED = 'checked'
_ZSTANDARD = b'\x28\xb5\x2f\xfd'


def folder() -> str:
  """Returns a folder for the programs of this machine's processor.

  It is a temporary one, which this process removes, if the checkout cannot be
  written.
  """
  kept = _FOLDER / _processor()
  try:
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=kept):
      pass
  except OSError:
    made = tempfile.mkdtemp(prefix='perlhf_programs_')
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
  _tidy(kept)
  return str(kept)


def _processor() -> str:
  """Digests what programs may use of a processor."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:  # Not Linux.
    lines = []
  names = 'vendor_id', 'cpu family', 'model', 'flags', 'Features', 'CPU part'
  known = sorted({line for line in lines if line.startswith(names)})
  return hashlib.sha256('\n'.join(known).encode()).hexdigest()[:16]


def _tidy(kept: pathlib.Path) -> None:
  """Removes programs of processes that were killed, and the oldest ones.

  JAX warns of a damaged program in every process, and never replaces it.
  """
  checked = kept / _CHECKED
  since = checked.stat().st_mtime if checked.exists() else 0
  checked.touch()
  left = []
  for path in kept.iterdir():
    status = path.stat()
    if status.st_mtime >= since and path.name != _CHECKED:
      if not _is_whole(path.read_bytes()):
        path.unlink(missing_ok=True)
        continue
    left.append((status.st_atime, status.st_size, path))
  size = sum(each[1] for each in left)
  for _, length, path in sorted(left):
    if size <= _MOST_BYTES:
      break
    path.unlink(missing_ok=True)
    size -= length


def _is_whole(data: bytes) -> bool:
  """Whether what JAX has compressed can be read."""
  if data.startswith(_ZSTANDARD):
    import zstandard

    try:
      zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError:
      return False
    return True
  try:
    zlib.decompress(data)
  except zlib.error:
    return False
  return True
