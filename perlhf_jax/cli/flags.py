"""Flags of commands, read from the functions that run them.

A function's signature gives the flags with their types and defaults; its
docstring gives their help. Both are read from the source, because importing a
function that reads data takes seconds.
"""

import ast
from collections.abc import Sequence
import dataclasses
import importlib.util
import pathlib
import re
import types
from typing import Annotated, Any, Union, get_args, get_origin

from absl import flags as absl_flags

from perlhf_jax.core import checks


def _sizes(text: str) -> tuple[int, ...]:
  return tuple(int(size) for size in text.strip('() ').split(','))


def _names(text: str) -> tuple[str, ...]:
  names = tuple(text.split(','))
  if not all(names):
    raise ValueError('a name between commas is empty')
  return names


_READERS = {
  int: int,
  float: float,
  str: str,
  bool: bool,
  Sequence[int]: _sizes,
  Sequence[str]: _names,
}
_NAMES = {'Annotated': Annotated, 'Sequence': Sequence, 'checks': checks}


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of a command.

  Attributes:
    argument: name of the function's argument.
    help: help text.
    annotation: type and bounds of the value.
    default: value if the flag is not given.
    required: whether it must be given.
  """

  argument: str
  help: str
  annotation: Any = bool
  default: Any = False
  required: bool = False

  @property
  def name(self) -> str:
    """Name of the flag without dashes: `input` for the argument input_path."""
    return self.argument.removesuffix('_path')

  @property
  def note(self) -> str:
    """Help text, with its default or that it is required."""
    if self.required:
      return f'{self.help} (required)'
    if self.default is None or self.default is False:
      return self.help
    shown = str(self.default).strip('()').replace(', ', ',')
    return f'{self.help} (default {shown})'

  def define(self, values: absl_flags.FlagValues) -> None:
    """Defines the flag in absl's `values`."""
    given = self.name, self.default, self.help
    if self.annotation is bool:
      absl_flags.DEFINE_boolean(*given, flag_values=values)
    else:
      absl_flags.DEFINE(_Parser(self), *given, flag_values=values)


class _Parser(absl_flags.ArgumentParser):
  """Parses a value and checks it against the annotation."""

  def __init__(self, flag: Flag):
    self._flag = flag

  def parse(self, argument: Any) -> Any:
    """Parses text; a value that is not text is only checked."""
    if isinstance(argument, str):
      argument = _READERS[_kind(self._flag.annotation)](argument)
    checks.check(f'--{self._flag.name}', argument, self._flag.annotation)
    return argument


def of(function: str) -> tuple[Flag, ...]:
  """Returns the flags of a function: its keyword-only arguments of plain types.

  Args:
    function: its full name, such as `perlhf_jax.stages.score.score`.
  """
  module, _, name = function.rpartition('.')
  source = pathlib.Path(importlib.util.find_spec(module).origin)
  nodes = ast.parse(source.read_text('utf-8')).body
  node = next(each for each in nodes if getattr(each, 'name', None) == name)
  text = (ast.get_docstring(node) or '').partition('\nReturns:')[0]
  texts = dict(re.findall(r'^  (\w+): (.*(?:\n    .*)*)', text, re.MULTILINE))
  flags = []
  for argument, default in zip(
    node.args.kwonlyargs, node.args.kw_defaults, strict=True
  ):
    annotation = _evaluated(argument.annotation)
    if _kind(annotation) in _READERS:
      meaning = ' '.join(texts.get(argument.arg, '').split()).rstrip('.')
      value = None if default is None else ast.literal_eval(default)
      flags.append(
        Flag(argument.arg, meaning, annotation, value, default is None)
      )
  return tuple(flags)


def _evaluated(annotation: ast.expr) -> Any:
  """Evaluates a plain type with bounds; None for types of other modules."""
  try:
    return eval(ast.unparse(annotation), dict(_NAMES))
  except NameError:
    return None


def _kind(annotation: Any) -> Any:
  """Returns the type of an annotation, without bounds and without None."""
  if get_origin(annotation) is Annotated:
    return _kind(get_args(annotation)[0])
  if get_origin(annotation) in (Union, types.UnionType):
    kinds = {_kind(each) for each in get_args(annotation)} - {type(None)}
    return kinds.pop() if len(kinds) == 1 else None
  return annotation
