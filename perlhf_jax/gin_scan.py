"""Reads gin files without running them, to find mistakes at once.

Gin itself tells of most mistakes only after it has imported everything that a
configuration names (seconds, with TensorFlow), of one at a time, and not at all
of a misspelt macro on the command line. A scan parses the same files with gin's
own parser but resolves nothing, so that it needs no import.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import difflib
import os
import pathlib
import re
import tokenize
from typing import Any, NamedTuple

from gin import config_parser

from perlhf_jax.core import errors

_PACKAGE = pathlib.Path(__file__).resolve().parent

# Where `gin/...` lies: at the top of a checkout, or in an installed package.
GIN_ROOTS = (_PACKAGE.parent, _PACKAGE)

REQUIRED = 'gin.REQUIRED'

# Folders of files that any command may be given.
_ADDED = ('gin/models/', 'gin/lora/', 'gin/rl/', 'gin/vocabularies/')

# What is named first where several files would do: it runs anywhere, or it is
# the paper's choice.
_SUGGESTED = (
  'gin/models/t5_tiny.gin',
  'gin/lora/attention.gin',
  'gin/rl/reinforce.gin',
)


class Macro(NamedTuple):
  """A use of a macro, `%NAME`."""

  name: str


class Reference(NamedTuple):
  """A use of a configurable, `@name` or `@name()`."""

  name: str


class Import(NamedTuple):
  """An import statement and where it stands."""

  module: str
  place: str


class _Delegate(config_parser.ParserDelegate):
  """Keeps names as names."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name)

  def macro(self, macro_name):
    return Macro(macro_name)


@dataclasses.dataclass
class Scan:
  """What a list of gin files and bindings says, later ones winning.

  Attributes:
    macros: the value and the place of each macro's last definition.
    parameters: the same of each parameter, by its name as written.
    imports: every import statement.
    notes: what a file's comments say of each macro; see `_notes`.
  """

  macros: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
  parameters: dict[str, tuple[Any, str]] = dataclasses.field(
    default_factory=dict
  )
  imports: list[Import] = dataclasses.field(default_factory=list)
  notes: dict[str, str] = dataclasses.field(default_factory=dict)

  def uses(self) -> dict[str, str]:
    """Gives each macro that is read, with the first place that reads it."""
    found: dict[str, str] = {}
    for value, place in (*self.macros.values(), *self.parameters.values()):
      for name in _macros_in(value):
        found.setdefault(name, place)
    return found

  def required(self) -> dict[str, str]:
    """Gives the macros that a file requires and nothing gives, with places."""
    return {
      name: place
      for name, (value, place) in self.macros.items()
      if value == Macro(REQUIRED)
    }

  def undefined(self) -> dict[str, str]:
    """Gives the macros that are read and nowhere defined, with places."""
    # A name with a dot is a constant, which only its module defines.
    return {
      name: place
      for name, place in self.uses().items()
      if name not in self.macros and '.' not in name
    }


def find_file(name: str, search_paths: Sequence[str] = ()) -> str:
  """Finds a gin file: as given, in the search paths, or among our own.

  Args:
    name: a path, for example `gin/runs/train_sft.gin`.
    search_paths: folders to look in before this library's.

  Returns:
    A path that exists.

  Raises:
    ConfigError: there is no such file.
  """
  folders = ['', *search_paths, *map(str, GIN_ROOTS)]
  for folder in folders:
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  looked_in = ', '.join(folder or os.getcwd() for folder in folders)
  raise errors.ConfigError(
    f'no gin file {name}{_did_you_mean(name, _own_files())} '
    f'(looked in {looked_in}; --gin_search_paths adds folders)'
  )


def scan_file(
  scan: Scan,
  name: str,
  search_paths: Sequence[str] = (),
  included_from: tuple[str, ...] = (),
) -> None:
  """Adds a gin file, and the files that it includes, to a scan.

  Args:
    scan: what was read so far; changed in place.
    name: the file, as `find_file` takes it.
    search_paths: folders to look in before this library's.
    included_from: the files whose reading led here.

  Raises:
    ConfigError: a file is missing, is not gin, or includes itself.
  """
  if name in included_from:
    chain = ' includes '.join((*included_from, name))
    raise errors.ConfigError(f'gin files include each other: {chain}')
  path = find_file(name, search_paths)
  with open(path, encoding='utf-8') as file:
    notes = _notes(file.read().splitlines())
    file.seek(0)
    for statement in _statements(file, name):
      if isinstance(statement, config_parser.IncludeStatement):
        scan_file(
          scan, statement.filename, search_paths, (*included_from, name)
        )
      else:
        line = statement.location.line_num
        _add(scan, statement, f'{name}, line {line}')
        if isinstance(statement, config_parser.BindingStatement):
          if not statement.arg_name and line in notes:
            scan.notes[_macro_name(statement)] = notes[line]


def scan_binding(scan: Scan, binding: str, flag: str) -> set[str]:
  """Adds a binding from the command line to a scan.

  Args:
    scan: what was read so far; changed in place.
    binding: gin text, usually `NAME=VALUE`.
    flag: the command-line argument that gave it.

  Returns:
    The macros that it sets.

  Raises:
    ConfigError: it is not gin.
  """
  try:
    statements = list(_statements(binding, flag))
  except errors.ConfigError as error:
    raise errors.ConfigError(_explain_bad_binding(binding, flag)) from error
  names = set()
  for statement in statements:
    _add(scan, statement, flag)
    if isinstance(statement, config_parser.BindingStatement):
      if not statement.arg_name:
        names.add(_macro_name(statement))
  return names


def check(
  scan: Scan, given: dict[str, str], flags: dict[str, str] | None = None
) -> None:
  """Finds the macros that are missing or misspelt.

  Args:
    scan: all files and bindings.
    given: the macros that the command line sets, with the argument that does.
    flags: macros that have a flag of their own, with its name.

  Raises:
    ConfigError: names all that is missing, or the first that is misspelt.
  """
  flags = flags or {}
  used = scan.uses()
  for name, flag in given.items():
    if name not in used:
      known = sorted(used.keys() - {REQUIRED})
      files = files_defining(name)
      hint = f'; is --gin_file={" or ".join(files)} left out?' if files else ''
      raise errors.ConfigError(
        f'{flag} sets {name}, which none of the gin files reads'
        f'{hint or _did_you_mean(name, known)} '
        f'(they read {", ".join(known) or "none"})'
      )
  missing = [
    f'{_flag_for(name, flags)} (required by {place})'
    for name, place in scan.required().items()
  ]
  for name, place in scan.undefined().items():
    files = files_defining(name)
    ways = [f'--gin_file={" or ".join(files)}'] if files else []
    ways.append(_flag_for(name, flags))
    missing.append(f'{", or ".join(ways)} ({place} reads %{name})')
  if missing:
    raise errors.ConfigError('give ' + '\n  and '.join(missing))


def files_defining(name: str, limit: int = 3) -> list[str]:
  """Lists gin files that define a macro and can be added to a command's own.

  Run files belong to one command each, and those of worlds to their demos, so
  these are left out.
  """
  pattern = re.compile(rf'^{re.escape(name)}\s*=', re.MULTILINE)
  found = [
    file
    for file in _own_files()
    if file.startswith(_ADDED)
    and pattern.search(pathlib.Path(find_file(file)).read_text('utf-8'))
  ]
  return sorted(found, key=lambda file: file not in _SUGGESTED)[:limit]


def _own_files() -> list[str]:
  """Lists this library's gin files as a user would name them."""
  for root in GIN_ROOTS:
    if (root / 'gin').is_dir():
      return sorted(
        path.relative_to(root).as_posix()
        for path in (root / 'gin').glob('**/*.gin')
      )
  return []


def _notes(lines: Sequence[str]) -> dict[int, str]:
  """Returns the comment of each line, by its number from 1.

  A comment stands behind a line or, if it is long, above it.
  """
  notes, above = {}, []
  for number, line in enumerate(lines, start=1):
    code, _, behind = line.partition('  # ')
    if line.startswith('#'):
      above.append(line.removeprefix('#').strip())
      continue
    if code and (behind or above):
      notes[number] = behind or ' '.join(above)
    above = []
  return notes


def _statements(source: Any, name: str) -> Iterator[Any]:
  """Parses gin text; `source` is a string or an open file."""
  try:
    yield from config_parser.ConfigParser(source, _Delegate())
  except tokenize.TokenError as error:
    message, (line, _) = error.args
    raise errors.ConfigError(
      f'{name}, line {line}: {message}; is a bracket or a quote left open?'
    ) from error
  except SyntaxError as error:
    text = (error.text or '').strip()
    raise errors.ConfigError(
      f'{name}, line {error.lineno}: cannot read `{text}`: {error.msg} '
      '(text needs quotes)'
    ) from error
  except (TypeError, ValueError, RecursionError, MemoryError) as error:
    raise errors.ConfigError(f'{name}: cannot read it: {error}') from error


def _add(scan: Scan, statement: Any, place: str) -> None:
  """Records one statement."""
  if isinstance(statement, config_parser.ImportStatement):
    if not statement.module.startswith('__gin__.'):
      scan.imports.append(Import(statement.module, place))
  elif isinstance(statement, config_parser.BindingStatement):
    if statement.arg_name:
      key = f'{_macro_name(statement)}.{statement.arg_name}'
      scan.parameters[key] = statement.value, place
    else:
      scan.macros[_macro_name(statement)] = statement.value, place


def _macro_name(statement: config_parser.BindingStatement) -> str:
  """Gives the name on the left of a statement, scope included."""
  if statement.scope:
    return f'{statement.scope}/{statement.selector}'
  return statement.selector


def _macros_in(value: Any) -> Iterator[str]:
  """Yields the names of all macros inside a value."""
  if isinstance(value, Macro):
    yield value.name
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from _macros_in(key)
      yield from _macros_in(item)
  elif isinstance(value, list | tuple) and not isinstance(value, Reference):
    for item in value:
      yield from _macros_in(item)


def _explain_bad_binding(binding: str, flag: str) -> str:
  """Says what is wrong with `NAME=VALUE` from the command line."""
  name, equals, value = binding.partition('=')
  if not equals or not value.strip():
    return f'{flag} gives no value: write --gin.{name.strip()}=VALUE'
  if re.fullmatch(r'[\w./:~-]+', value):
    return (
      f'{flag}: {value} is not a gin value. Text needs quotes of its own, '
      f'inside those of the shell: --gin.{name}="\'{value}\'"'
    )
  return (
    f'{flag}: {value} is not a gin value, which is a Python literal, @name or '
    '%NAME. Put the whole argument in the quotes of the shell'
  )


def _flag_for(name: str, flags: dict[str, str]) -> str:
  """Writes the argument that sets a macro."""
  return f'--{flags[name]}=...' if name in flags else f'--gin.{name}=...'


def _did_you_mean(name: str, known: Iterable[str]) -> str:
  """Suggests a name that is close, if there is one."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f'; did you mean {close[0]}?' if close else ''
