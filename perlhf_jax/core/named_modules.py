"""Imports modules that the user names, also from the current folder.

The current folder is not on `sys.path`. If it were, Python would search it for
every import. Libraries import optional modules such as `cv2`, `pandas`,
`libtpu` or JAX plugins on their own, so a file with such a name would run when
a command is started in its folder, even a folder of somebody else. So a module
of the current folder is found only if the user names it, or if a module found
there imports it.
"""

import difflib
import importlib
import importlib.machinery
import os
import pathlib
import sys
from types import ModuleType
from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.core import user_code


class _Finder:
  """Finder of named top-level modules; the last entry of `sys.meta_path`."""

  def __init__(self):
    # Module that the user named -> folder in which to look for it.
    self.named: dict[str, str] = {}
    # Found module -> its folder, from which it may import other modules.
    self.found: dict[str, str] = {}

  def find_spec(self, name: str, path: Any = None, target: Any = None):
    """Finds a module as Python's own finders do; None if it was not named.

    Args:
      name: name of the module.
      path: path of its package; None for a top-level module. Python itself
        finds modules inside packages.
      target: not used.
    """
    del target
    if path is not None:
      return None
    folder = self.named.get(name) or self.found.get(_importer())
    if folder is None:
      return None
    spec = importlib.machinery.PathFinder.find_spec(name, [folder])
    if spec is not None:
      self.found[name] = folder
    return spec


_FINDER = _Finder()
_IMPORT_SYSTEM = {
  'importlib',
  '_frozen_importlib',
  '_frozen_importlib_external',
}


def import_module(name: str) -> ModuleType:
  """Imports a module that the user named, also from the current folder.

  Args:
    name: importable name, such as `my_tasks` or `my_package.tasks`. Installed
      modules and modules on PYTHONPATH take precedence over the current folder.

  Raises:
    ConfigError: it cannot be imported. Errors inside modules of this package
      are raised unchanged.
  """
  top = name.partition('.')[0]
  if _FINDER not in sys.meta_path:
    sys.meta_path.append(_FINDER)
  _FINDER.named[top] = os.getcwd()
  importlib.invalidate_caches()  # The file may be new.
  try:
    return importlib.import_module(name)
  except errors.UserError as error:
    raise type(error)(f'{error} {user_code.line_of(error)}'.rstrip()) from error
  except (Exception, SystemExit) as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name
    if missing and f'{name}.'.startswith(f'{missing}.'):
      raise errors.ConfigError(
        f'The module {name!r} cannot be found.{_near(name)} Put the directory'
        ' that holds it on PYTHONPATH, or start in it, and name it as an import'
        ' statement does: my_package.my_module.'
      ) from error
    if name.startswith('perlhf_jax.'):
      raise
    if missing:
      raise errors.ConfigError(
        f'The module {name!r} imports {missing!r}, which is not installed'
        f' {user_code.line_of(error)}. Install it, or remove the import.'
      ) from error
    raise errors.ConfigError(
      f'The module {name!r} cannot be imported: {user_code.describe(error)}.'
    ) from error
  finally:
    _FINDER.named.pop(top, None)


def _near(module: str) -> str:
  """Returns a suggestion for a misspelt module name, or ''."""
  as_path = module.removesuffix('.py').replace('/', '.')
  if as_path != module:
    return f' Did you mean {as_path}?'
  names = [path.stem for path in pathlib.Path().glob('*.py')]
  near = difflib.get_close_matches(module, names, n=1)
  return f' Did you mean {near[0]}?' if near else ''


def _importer() -> str:
  """Returns the top-level name of the module that runs the current import."""
  frame, in_import = sys._getframe(), False
  while frame is not None:
    name = frame.f_globals.get('__name__', '').partition('.')[0]
    if name in _IMPORT_SYSTEM:
      in_import = True
    elif in_import:
      return name
    frame = frame.f_back
  return ''
