"""Where code of the user's own is, and where in it an error arose.

Messages name a function by file and line, and an error by the user's own line
that led to it, since they are printed without a traceback.
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
  """Returns `module.name` of a function, of whatever a partial wraps too."""
  function = unwrapped(function)
  named = function if hasattr(function, '__qualname__') else type(function)
  return f'{named.__module__}.{named.__qualname__}'


def place_of(function: Callable[..., Any]) -> str:
  """Returns `module.name (file:line)`; the name alone for one without source.

  Args:
    function: a function, a partial of one, or an object that can be called.
  """
  name, function = name_of(function), unwrapped(function)
  is_object = not hasattr(function, '__qualname__')
  function = type(function).__call__ if is_object else function
  code = getattr(inspect.unwrap(function), '__code__', None)
  if code is None:
    return name
  return f'{name} ({_shown(code.co_filename)}:{code.co_firstlineno})'


def describe(error: BaseException) -> str:
  """Says what an error is and which line of the user's led to it.

  Args:
    error: as it was caught.

  Returns:
    `KeyError: 'x' (my_tasks.py:12, in parse: return record['x'])`. The line is
    the innermost one that is neither ours nor a library's, or the one by which
    we called a library; of a mistake in writing, the line that cannot be read.
  """
  error = original(error)
  text = error.msg if isinstance(error, SyntaxError) else str(error)
  what = f'{type(error).__name__}: {text}' if text else type(error).__name__
  return f'{what} {line_of(error)}'.rstrip()


def original(error: BaseException) -> BaseException:
  """Returns the error that was raised, without the call sites that gin appends.

  Gin raises a copy of an exception that passes through a configurable; the
  copy's class derives from the original's and has its name.
  """
  inner = error.__context__
  while (
    type(error).__base__ is type(inner)
    and type(error).__name__ == type(inner).__name__
  ):
    error, inner = inner, inner.__context__
  return error


def line_of(error: BaseException) -> str:
  """Returns the line of the user's that led to an error, in brackets.

  Args:
    error: as it was caught.

  Returns:
    As in `describe`; empty if there is none.
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
  """Whether a line of this package raised an error, not a library's."""
  frames = traceback.extract_tb(error.__traceback__)
  return bool(frames) and frames[-1].filename.startswith(_OURS)


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function that a partial, or a partial of one, calls."""
  while isinstance(function, functools.partial):
    function = function.func
  return function


def is_own(path: str) -> bool:
  """Whether a file is the user's: neither ours nor of anything installed."""
  return not _is_ours(path) and not _is_installed(path)


def _is_ours(path: str) -> bool:
  """Whether a file is of this package, or of Python itself."""
  is_frozen = path.startswith('<frozen')
  return is_frozen or os.path.abspath(path).startswith((_OURS, *_STANDARD))


def _is_installed(path: str) -> bool:
  return bool(_INSTALLED.intersection(pathlib.Path(path).parts))


def _shown(path: str) -> str:
  """A path as short as it can be: relative if it lies below this folder."""
  path = os.path.abspath(path)
  relative = os.path.relpath(path)
  return path if relative.startswith(os.pardir) else relative
