"""Locates the user's own code, and the line of it where an error arose.

Messages are printed without a traceback, so they name a function by file and
line, and an error by the line of the user's code that led to it.
"""

from collections.abc import Callable
import functools
import inspect
import os
import pathlib
import sysconfig
import traceback
from typing import Any

_OURS = str(pathlib.Path(__file__).resolve().parents[1]) + os.sep
_STANDARD = tuple(
  sysconfig.get_path(name) + os.sep for name in ('stdlib', 'platstdlib')
)
_INSTALLED = {'site-packages', 'dist-packages'}


def name_of(function: Callable[..., Any]) -> str:
  """Returns `module.name` of a function, or of the function of a partial."""
  function = unwrapped(function)
  named = function if hasattr(function, '__qualname__') else type(function)
  return f'{named.__module__}.{named.__qualname__}'


def place_of(function: Callable[..., Any]) -> str:
  """Returns `module.name (file:line)`, or only the name if it has no source.

  Args:
    function: a function, a partial of one, or another callable object.
  """
  name, function = name_of(function), unwrapped(function)
  is_object = not hasattr(function, '__qualname__')
  function = type(function).__call__ if is_object else function
  code = getattr(inspect.unwrap(function), '__code__', None)
  if code is None:
    return name
  return f'{name} ({_shown(code.co_filename)}:{code.co_firstlineno})'


def describe(error: BaseException) -> str:
  """Describes an error and the line of the user's code that led to it.

  Args:
    error: the caught error.

  Returns:
    `KeyError: 'x' (my_tasks.py:12, in parse: return record['x'])`. The line is
    the innermost line outside of this package and of libraries, or else the
    first line of the library that we called; for a SyntaxError, the line that
    cannot be parsed.
  """
  error = original(error)
  text = error.msg if isinstance(error, SyntaxError) else str(error)
  what = f'{type(error).__name__}: {text}' if text else type(error).__name__
  return f'{what} {line_of(error)}'.rstrip()


def original(error: BaseException) -> BaseException:
  """Returns the original error, without the call sites that gin appends.

  Gin raises a copy of an exception that passes through a configurable. The
  copy's class derives from the original's class and has the same name.
  """
  inner = error.__context__
  while (
    type(error).__base__ is type(inner)
    and type(error).__name__ == type(inner).__name__
  ):
    error, inner = inner, inner.__context__
  return error


def line_of(error: BaseException) -> str:
  """Returns the line of the user's code that led to an error, in brackets.

  Args:
    error: the caught error.

  Returns:
    The line as in `describe`; empty if there is none.
  """
  error = original(error)
  if isinstance(error, SyntaxError) and error.filename:
    place = f'{_shown(error.filename)}:{error.lineno}'
    return f'({place}: {(error.text or "").strip()})'
  frames = traceback.extract_tb(error.__traceback__)
  frames = [frame for frame in frames if not _is_ours(frame.filename)]
  own = [frame for frame in frames if not _is_installed(frame.filename)]
  if not frames:
    return ''
  frame = own[-1] if own else frames[0]
  place = f'{_shown(frame.filename)}:{frame.lineno}, in {frame.name}'
  return f'({place}{": " if frame.line else ""}{frame.line})'


def raised_by_us(error: BaseException) -> bool:
  """Returns whether this package, not a library, raised an error."""
  frames = traceback.extract_tb(error.__traceback__)
  return bool(frames) and frames[-1].filename.startswith(_OURS)


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function inside a (nested) partial."""
  while isinstance(function, functools.partial):
    function = function.func
  return function


def is_own(path: str) -> bool:
  """Returns whether a file is the user's, neither ours nor installed."""
  return not _is_ours(path) and not _is_installed(path)


def _is_ours(path: str) -> bool:
  """Returns whether a file belongs to this package or to Python itself."""
  is_frozen = path.startswith('<frozen')
  return is_frozen or os.path.abspath(path).startswith((_OURS, *_STANDARD))


def _is_installed(path: str) -> bool:
  return bool(_INSTALLED.intersection(pathlib.Path(path).parts))


def _shown(path: str) -> str:
  """Shortens a path: relative if it is below the current folder."""
  path = os.path.abspath(path)
  relative = os.path.relpath(path)
  return path if relative.startswith(os.pardir) else relative
