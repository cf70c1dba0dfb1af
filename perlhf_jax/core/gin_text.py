"""Parses gin text with gin's own parser, without resolving names."""

from collections.abc import Iterator
import tokenize
from typing import Any, NamedTuple

from gin import config_parser

from perlhf_jax.core import errors


class Macro(NamedTuple):
  """A use of a macro, `%NAME`."""

  name: str

  def __repr__(self) -> str:
    return f'%{self.name}'


class Reference(NamedTuple):
  """A use of a configurable, `@name` or `@name()`."""

  name: str

  def __repr__(self) -> str:
    return f'@{self.name}'


class Statement(NamedTuple):
  """A gin statement.

  Attributes:
    kind: 'macro', 'parameter', 'include' or 'import'.
    name: name of the macro or parameter with its scope, of the included file,
      or of the imported module.
    value: value of a macro or parameter; None otherwise.
    line: line number, from 1.
  """

  kind: str
  name: str
  value: Any
  line: int


class _Delegate(config_parser.ParserDelegate):
  """Parser delegate that returns names unresolved."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(f'{scoped_configurable_name}{"()" if evaluate else ""}')

  def macro(self, macro_name):
    return Macro(macro_name)


def statements(text: str, place: str) -> Iterator[Statement]:
  """Parses gin text.

  Args:
    text: gin statements.
    place: the file or flag they come from, for messages.

  Raises:
    ConfigError: `text` is not valid gin.
  """
  try:
    for each in config_parser.ConfigParser(text, _Delegate()):
      line = each.location.line_num
      if isinstance(each, config_parser.BindingStatement):
        name = '/'.join(filter(None, (each.scope, each.selector)))
        kind = 'macro'
        if each.arg_name:
          kind, name = 'parameter', f'{name}.{each.arg_name}'
        yield Statement(kind, name, each.value, line)
      elif isinstance(each, config_parser.IncludeStatement):
        yield Statement('include', each.filename, None, line)
      elif isinstance(each, config_parser.ImportStatement):
        if not each.module.startswith('__gin__.'):
          yield Statement('import', each.module, None, line)
  except tokenize.TokenError as error:
    message, (line, _) = error.args
    raise errors.ConfigError(
      f'{place}, line {line}: {message}; is a bracket or a quote left open?'
    ) from error
  except SyntaxError as error:
    raise errors.ConfigError(
      f'{place}, line {error.lineno}: cannot read '
      f'`{(error.text or "").strip()}`: {error.msg} (text needs quotes)'
    ) from error
  except (TypeError, ValueError, RecursionError, MemoryError) as error:
    raise errors.ConfigError(f'{place}: cannot read it: {error}') from error


def macros_in(value: Any) -> Iterator[str]:
  """Yields the names of all macros inside a value."""
  if isinstance(value, Macro):
    yield value.name
  elif isinstance(value, dict):
    yield from macros_in([*value.keys(), *value.values()])
  elif isinstance(value, list | tuple) and not isinstance(value, Reference):
    for item in value:
      yield from macros_in(item)
