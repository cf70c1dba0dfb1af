"""Imports modules that the user names, from the current folder too.

The current folder is not on `sys.path`: Python would look there for every
import, and libraries try to import optional modules of their own accord, such
as `cv2`, `pandas`, `libtpu` or plugins of JAX. A file of such a name would run
wherever a command happens to be started, in a folder of somebody else's as
well. So a module is found there only if the user has named it, or if a module
found there imports it itself.
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
  """Finds top-level modules that were named; the last one that Python asks."""

  def __init__(self):
    # The folder in which to look for each module whose import was asked for.
    self.named: dict[str, str] = {}
    # The folder of each module that was found, which may import others of it.
    self.found: dict[str, str] = {}

  def find_spec(self, name: str, path: Any = None, target: Any = None):
    """Finds a module as Python's own finders do; None if it was not named.

    Args:
      name: of the module.
      path: of its package. Python finds what is in a package by itself.
      target: an earlier version of the module, which is not needed.
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
  """Imports a module that the user named, of the current folder too.

  Args:
    name: importable name, such as `my_tasks` or `my_package.tasks`. A module
      that is installed or on PYTHONPATH comes before one of the current folder.

  Raises:
    ConfigError: it cannot be imported. A fault in a module of ours keeps its
      own error.
  """
  top = name.partition('.')[0]
  if _FINDER not in sys.meta_path:
    sys.meta_path.append(_FINDER)
  _FINDER.named[top] = os.getcwd()
  importlib.invalidate_caches()  # The file may just have been written.
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
  """Suggests the name of a module that may be meant."""
  as_path = module.removesuffix('.py').replace('/', '.')
  if as_path != module:
    return f' Did you mean {as_path}?'
  names = [path.stem for path in pathlib.Path().glob('*.py')]
  near = difflib.get_close_matches(module, names, n=1)
  return f' Did you mean {near[0]}?' if near else ''


def _importer() -> str:
  """Returns the top-level name of the module whose import is under way."""
  frame, in_import = sys._getframe(), False
  while frame is not None:
    name = frame.f_globals.get('__name__', '').partition('.')[0]
    if name in _IMPORT_SYSTEM:
      in_import = True
    elif in_import:
      return name
    frame = frame.f_back
  return ''
