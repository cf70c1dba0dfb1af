"""Checks settings against their annotations.

A setting is a field of a dataclass or an argument of a function. Its
annotation gives its type, and its bounds if it is a number:

  rank: Annotated[int, checks.Range(least=1)] = 8

cli/gin_checks.py checks all settings that a gin configuration binds before
objects are made from them, and names the macro and the place that sets it.
For use from Python, dataclasses call `check_fields`, and the functions of
commands are decorated with `checked`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from typing import (
  Annotated,
  Any,
  TypeVar,
  Union,
  get_args,
  get_origin,
)

import typing_extensions

from perlhf_jax.core import errors

_UNIONS = (Union, types.UnionType)
_PLAIN = (str, bytes, int, float, list, tuple, dict, type(None))
# Maximum number of characters of a value in a message.
_SHOWN = 200
_Function = TypeVar('_Function', bound=Callable[..., Any])

# A value that is not known yet, such as the result of a gin reference. It
# passes every check.
UNKNOWN = object()


@dataclasses.dataclass(frozen=True)
class Range:
  """Bounds of a number, for `Annotated`.

  Attributes:
    least: inclusive lower bound.
    above: exclusive lower bound.
    most: inclusive upper bound.
    below: exclusive upper bound.
    hint: advice that the message shows after the bounds.
  """

  least: float | None = None
  above: float | None = None
  most: float | None = None
  below: float | None = None
  hint: str = ''

  def allows(self, value: float) -> bool:
    """Returns whether a number is within the bounds."""
    return (
      (self.least is None or value >= self.least)
      and (self.above is None or value > self.above)
      and (self.most is None or value <= self.most)
      and (self.below is None or value < self.below)
    )

  def __str__(self):
    if self.least is not None and self.most is not None:
      parts = [f'from {_number(self.least)} to {_number(self.most)}']
    else:
      bounds = {
        'of at least': self.least,
        'above': self.above,
        'of at most': self.most,
        'below': self.below,
      }
      parts = [f'{k} {_number(v)}' for k, v in bounds.items() if v is not None]
    return ' and '.join(parts) + (f' ({self.hint})' if self.hint else '')


class OneOf:
  """The values that a setting may have, for `Annotated`."""

  def __init__(self, *values: Any):
    self.values = values

  def allows(self, value: Any) -> bool:
    """Returns whether a value is one of them."""
    return value in self.values

  def __repr__(self):
    return f'OneOf{self.values}'

  def __str__(self):
    return f'one of {", ".join(map(repr, self.values))}'


Positive = Range(above=0)
NotNegative = Range(least=0)
Fraction = Range(least=0, most=1)
AtLeastOne = Range(least=1)


def check(name: str, value: Any, annotation: Any) -> None:
  """Checks a value against an annotation.

  Args:
    name: the user's name of the setting, for the message.
    value: the value that the user gave.
    annotation: a type, a union, a container type, a protocol, or
      `Annotated` with a `Range` or `OneOf`. Any other annotation allows every
      value.

  Raises:
    ConfigError: the value has another type or is out of bounds.
  """
  if _is_valid(value, annotation):
    return
  lacking = _missing(value, annotation)
  if lacking and not isinstance(value, _PLAIN):
    raise errors.ConfigError(
      f'{name} is {type(value).__name__}, which lacks {", ".join(lacking)}; it '
      f'must be {_wanted(annotation)}.'
    )
  raise errors.ConfigError(
    f'{name} is {shown(value)}; it must be {_wanted(annotation)}.'
  )


def shown(value: Any) -> str:
  """Formats a value for a message, and truncates a long one."""
  text = str(value) if isinstance(value, type) else repr(value)
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'


def check_fields(instance: Any) -> None:
  """Checks every field of a dataclass; called by `__post_init__`.

  Raises:
    ConfigError: a field has a value that its annotation does not allow.
  """
  hints = annotations_of(type(instance))
  for field in dataclasses.fields(instance):
    if field.init:
      name = f'{type(instance).__name__}.{field.name}'
      check(name, getattr(instance, field.name), hints[field.name])


def checked(function: _Function) -> _Function:
  """Decorates a function so that it first checks its keyword arguments.

  Raises:
    ConfigError: raised by the decorated function, if an annotation does not
      allow an argument; the name shown is `FUNCTION.ARGUMENT`.
  """

  @functools.wraps(function)
  def checking(**arguments):
    check_arguments(function, arguments)
    return function(**arguments)

  return checking


def check_arguments(
  function: Callable[..., Any], arguments: Mapping[str, Any]
) -> None:
  """Checks the arguments of a call; see `checked`.

  Raises:
    ConfigError: an argument has a value that its annotation does not allow.
  """
  hints = annotations_of(function)
  for name, value in arguments.items():
    if name in hints:
      check(f'{function.__name__}.{name}', value, hints[name])


def annotations_of(configurable: Any) -> dict[str, Any]:
  """Returns the annotation of each field or argument, by name.

  Args:
    configurable: a dataclass, another class, or a function.
  """
  if inspect.isclass(configurable) and not dataclasses.is_dataclass(
    configurable
  ):
    configurable = configurable.__init__
  hints = typing.get_type_hints(configurable, include_extras=True)
  hints.pop('return', None)
  return hints


def _is_valid(value: Any, annotation: Any) -> bool:
  """Returns whether an annotation allows a value."""
  if value is UNKNOWN or annotation is Any:
    return True
  if annotation is None or annotation is type(None):
    return value is None
  origin, args = get_origin(annotation), get_args(annotation)
  if origin is Annotated:
    # In `int | None` with bounds, the bounds do not apply to None.
    return _is_valid(value, args[0]) and (
      value is None or all(extra.allows(value) for extra in args[1:])
    )
  if origin in _UNIONS:
    return any(_is_valid(value, each) for each in args)
  if annotation is bool:
    return isinstance(value, bool)
  if annotation is int:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if annotation is float:
    return _is_number(value) and _is_finite(value)
  return _is_instance(value, annotation, origin, args)


def _is_instance(value, annotation, origin, args) -> bool:
  """Returns whether a value and its items are instances of a class."""
  kind = origin or annotation
  if kind is Callable:
    return callable(value)
  if not inspect.isclass(kind):
    return True
  if kind in (Sequence, list, tuple):
    if not isinstance(value, list | tuple):
      return False
    if kind is tuple and args and args[-1] is not Ellipsis:
      return len(value) == len(args) and all(map(_is_valid, value, args))
    return not args or all(_is_valid(item, args[0]) for item in value)
  if issubclass(kind, Mapping) and args:
    return isinstance(value, Mapping) and all(
      _is_valid(key, args[0]) and _is_valid(item, args[1])
      for key, item in value.items()
    )
  if typing_extensions.is_protocol(kind):
    return not isinstance(value, _PLAIN) and not _missing(value, kind)
  return isinstance(value, kind)


def _wanted(annotation: Any) -> str:
  """Describes the values that an annotation allows."""
  origin, args = get_origin(annotation), get_args(annotation)
  if origin is Annotated:
    bounds = ' '.join(map(str, args[1:]))
    if get_origin(args[0]) in _UNIONS:
      first, *others = get_args(args[0])
      rest = ''.join(f' or {_wanted(each)}' for each in others)
      return f'{_bounded(first, bounds)}{rest}'
    return _bounded(args[0], bounds)
  if origin in _UNIONS:
    return ' or '.join(_wanted(each) for each in args)
  names = {
    None: 'None',
    type(None): 'None',
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'text in quotes',
    Callable: 'a function',
  }
  kind = origin or annotation
  if kind in names:
    return names[kind]
  if kind in (Sequence, list, tuple):
    return _wanted_sequence(kind, args)
  if inspect.isclass(kind) and issubclass(kind, Mapping):
    items = f' of {_wanted(args[1])} by name' if args else ''
    return f'a dict{items}'
  name = getattr(kind, '__name__', str(kind))
  article = 'an' if name[0] in 'AEIO' else 'a'
  return f'{article} {name} (in gin, @name() of a class that makes one)'


def _bounded(annotation: Any, bounds: str) -> str:
  """Describes the values that an annotation with bounds allows."""
  if bounds.startswith('one of'):
    return bounds
  return f'{_wanted(annotation)} {bounds}'


def _wanted_sequence(kind, args) -> str:
  if not args:
    return 'a list'
  if kind is tuple and args[-1] is not Ellipsis:
    parts = ', '.join(_wanted(each) for each in args)
    return f'a tuple of {len(args)}: ({parts})'
  return f'a list, each item {_wanted(args[0])}'


def _missing(value: Any, annotation: Any) -> list[str]:
  """Returns the attributes of a protocol that a value lacks."""
  if not inspect.isclass(annotation):
    return []
  if not typing_extensions.is_protocol(annotation):
    return []
  members = typing_extensions.get_protocol_members(annotation)
  return sorted(name for name in members if not hasattr(value, name))


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_finite(value: numbers.Real) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # An integer too large for a float.
    return False


def _number(bound: float) -> str:
  return f'{bound:,}' if isinstance(bound, int) else f'{bound:g}'
