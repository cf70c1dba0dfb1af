"""Compiled programs are kept for the next start of a command.

JAX does it; here it is told where. The environment says so, since a command
that compiles nothing need not import JAX to be told.
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
# What JAX says, by a warning, of a program that it cannot read.
_DAMAGED = re.compile(
  r"Error reading persistent compilation cache entry for '(.+?)': (.*)", re.S
)


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
  _remove_damaged(folder)


def forbid() -> None:
  """Keeps JAX from it; to be called before it is imported.

  Programs for chips that are not here cannot be read back.
  """
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'


def _remove_damaged(folder: pathlib.Path) -> None:
  """Has programs removed that cannot be read, such as one half written.

  JAX compiles them again, but leaves them as they are, and so would warn of
  them at every start.
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
