"""Loads a command's gin configuration; every mistake is a ConfigError.

A scan (gin_scan.py) comes before, which needs no import; then the imports that
the files ask for, each with a check of what is bound of it (gin_checks.py); and
at last gin's own parse.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import re
from typing import Any

import gin

from perlhf_jax.cli import gin_checks
from perlhf_jax.cli import gin_scan
from perlhf_jax.core import errors
from perlhf_jax.core import named_modules

# The others may take seconds, because of TensorFlow. They come last, so that
# most mistakes are found before.
_FAST = ('perlhf_jax.models.', 'perlhf_jax.rl.', 'perlhf_jax.training.')


def load(
  scan: gin_scan.Scan, function: Callable[..., Any]
) -> Callable[[], Any]:
  """Makes a complete scan the configuration of this process.

  Returns:
    `function` with its arguments bound.

  Raises:
    ConfigError: an import does not exist, a name or a parameter is misspelt, or
      a value is of another type or out of bounds.
  """
  for module, place in sorted(
    scan.imports, key=lambda each: not each[0].startswith(_FAST)
  ):
    try:
      named_modules.import_module(module)
    except errors.ConfigError as error:
      raise errors.ConfigError(f'{place}: {error}') from error
    gin_checks.check_module(scan, module)
  gin.clear_config()
  for folder in scan.folders:  # A path that gin has already does no harm.
    gin.add_config_file_search_path(os.path.abspath(folder))
  for name, folder in scan.files:
    # Gin looks for what a file includes in the current folder first.
    with _explained(name), contextlib.chdir(folder or os.curdir):
      gin.parse_config_file(name)
  for text, flag in scan.bindings:
    with _explained(flag):
      gin.parse_config(text)
  with _explained('the gin configuration'):
    gin.finalize()
  return gin.get_configurable(function)


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
  """Turns gin's complaints into a ConfigError that names the place."""
  try:
    yield
  except Exception as error:
    # Gin appends to the message where it was, innermost first.
    message, *places = str(error).split('\n  In ')
    where = re.match(r'file "(.*)", line (\d+)', places[0] if places else '')
    if where:
      place = f'{where[1]}, line {where[2]}'
    raise errors.ConfigError(f'{place}: {message}') from error
