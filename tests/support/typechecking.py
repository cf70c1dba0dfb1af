"""The type checker that conftest.py puts on every function under test."""

import inspect
import types
import typing
from typing import Any

import beartype
import jaxtyping

# The numeric tower lets an int stand for a float, as PEP 484 says: gin users
# write `centering = 0`.
checked = beartype.beartype(
  conf=beartype.BeartypeConf(
    is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError
  )
)
_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
  """Checks all that is imported from now on.

  jaxtyping binds the arguments of every call twice, to compare shapes. That is
  kept for functions that say shapes. The type checker alone serves the others,
  of which a test may call some a million times.
  """
  jaxtyping.jaxtyped = _checked_with_shapes
  jaxtyping.install_import_hook(
    ['perlhf_jax', 'tasks'], typechecker='typechecking.checked'
  )


def _checked_with_shapes(*, typechecker: Any) -> Any:
  def decorate(function):
    if not isinstance(function, types.FunctionType):  # A class.
      return _jaxtyped(function, typechecker=typechecker)
    hints = inspect.get_annotations(function).values()
    if any(map(says_shapes, hints)):
      return _jaxtyped(function, typechecker=typechecker)
    return _checked(function) if hints else function

  return decorate


def _checked(function: types.FunctionType) -> Any:
  wrapper = checked(function)
  # A library's line, as jaxtyping's are: the checker writes its code anew, and
  # what is told of tracebacks and sources goes by files.
  wrapper.__code__ = wrapper.__code__.replace(co_filename=beartype.__file__)
  return wrapper


def says_shapes(hint: Any) -> bool:
  """Whether a hint has, or may have, something of jaxtyping's in it."""
  if isinstance(hint, list | tuple):  # The arguments of a Callable.
    return any(map(says_shapes, hint))
  if isinstance(hint, str | typing.ForwardRef):
    return True
  if isinstance(hint, typing.TypeVar):
    return says_shapes((hint.__bound__, hint.__constraints__))
  if type(hint).__module__.startswith('jaxtyping'):
    return True
  return any(map(says_shapes, typing.get_args(hint)))
