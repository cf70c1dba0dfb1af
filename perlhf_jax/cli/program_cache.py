"""Sets up JAX's persistent compilation cache, for faster starts of commands.

It is set by environment variables, so that a command that compiles nothing need
not import JAX.
"""

import glob
import hashlib
import os
import pathlib
import platform
import re
import warnings

from absl import logging

from perlhf_jax.core import start_cache

_MOST_BYTES = 4 << 30
# JAX's warning about a program that it cannot read.
_DAMAGED = re.compile(
  r"Error reading persistent compilation cache entry for '(.+?)': (.*)", re.S
)


def use() -> None:
  """Makes JAX cache compiled programs; call it before JAX is imported.

  Environment variables that the user has set for JAX take precedence.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  # One folder per kind of CPU: a program may use instructions that another CPU
  # sharing the folder does not have.
  folder = start_cache.folder(f'programs/{_machine()}')
  if folder is None:
    return
  start_cache.prune(folder, _MOST_BYTES)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
  # Cache small programs too, because there are many.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  _remove_damaged(folder)


def forbid() -> None:
  """Turns JAX's compilation cache off; call it before JAX is imported.

  Programs for chips that are not attached cannot be read back.
  """
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'


def _remove_damaged(folder: pathlib.Path) -> None:
  """Removes programs that JAX warns it cannot read, such as truncated ones.

  JAX compiles them again but keeps the damaged files, and so would warn at
  every start.
  """
  show = warnings.showwarning

  def show_or_remove(message, *arguments, **options):
    damaged = _DAMAGED.match(str(message))
    if damaged is None:
      show(message, *arguments, **options)
      return
    name, reason = damaged.groups()
    for path in folder.glob(f'{glob.escape(name)}-*'):
      start_cache.remove(path)
    logging.warning(
      'The program %s in %s is damaged (%s); it is compiled again.',
      *(name, folder, reason),
    )

  warnings.showwarning = show_or_remove


def _machine() -> str:
  """Returns a digest of this machine's kind of processor."""
  lines = [platform.machine(), platform.processor()]
  try:
    known = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:  # Not Linux.
    known = ''
  fields = ('vendor_id', 'cpu family', 'model', 'flags', 'Features', 'CPU part')
  lines += [each for each in known.splitlines() if each.startswith(fields)]
  text = '\n'.join(dict.fromkeys(lines))
  return hashlib.sha256(text.encode()).hexdigest()[:16]
