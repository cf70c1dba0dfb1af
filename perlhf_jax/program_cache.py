"""Compiled programs are kept for the next start of a command.

JAX does it; here it is told where. The environment says so, since a command
that compiles nothing need not import JAX to be told.
"""

import hashlib
import os
import pathlib
import platform

from perlhf_jax.core import start_cache

_MOST_BYTES = 4 << 30


def use() -> None:
  """Has JAX keep compiled programs; to be called before it is imported.

  What the user has told JAX itself by the environment is left as it is.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  # A program for a CPU may use whatever that CPU can do, and another one that
  # shares the folder may not have it.
  folder = start_cache.folder(f'programs/{_machine()}')
  if folder is None:
    return
  start_cache.prune(folder, _MOST_BYTES)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
  # Small programs are many.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def forbid() -> None:
  """Keeps JAX from it; to be called before it is imported.

  Programs for chips that are not here cannot be read back.
  """
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'


def _machine() -> str:
  """Names the kind of processor that this machine has."""
  lines = [platform.machine(), platform.processor()]
  try:
    known = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:  # Not Linux.
    known = ''
  fields = ('vendor_id', 'cpu family', 'model', 'flags', 'Features', 'CPU part')
  lines += [each for each in known.splitlines() if each.startswith(fields)]
  text = '\n'.join(dict.fromkeys(lines))
  return hashlib.sha256(text.encode()).hexdigest()[:16]
