"""Loads a command's gin configuration; every mistake is a ConfigError.

First, a scan reads the files without imports (gin_scan.py). Second, the modules
that the files import are imported, and the bindings of each are checked
(gin_checks.py). Last, gin parses the files.
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

# Imported first, to find most mistakes soon: other modules may take seconds,
# because of TensorFlow.
_FAST = ('perlhf_jax.models.', 'perlhf_jax.rl.', 'perlhf_jax.training.')


def load(
  scan: gin_scan.Scan, function: Callable[..., Any]
) -> Callable[[], Any]:
  """Loads a complete scan as the gin configuration of this process.

  Returns:
    `function` with its arguments bound.

  Raises:
    ConfigError: an import does not exist, a name or a parameter is misspelt, or
      a value has another type or is out of bounds.
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
  for folder in scan.folders:  # Adding a path twice is harmless.
    gin.add_config_file_search_path(os.path.abspath(folder))
  for name, folder in scan.files:
    # Gin looks for included files in the current folder first.
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
  """Turns gin's errors into a ConfigError that names the place."""
  try:
    yield
  except Exception as error:
    # Gin appends places to the message, innermost first.
    message, *places = str(error).split('\n  In ')
    where = re.match(r'file "(.*)", line (\d+)', places[0] if places else '')
    if where:
      place = f'{where[1]}, line {where[2]}'
    raise errors.ConfigError(f'{place}: {message}') from error
