"""Reads gin files without running them, to find mistakes early.

Gin reports most mistakes only after it has imported all modules of a
configuration (seconds, with TensorFlow), and one at a time. It does not report
a misspelt macro on the command line at all. A scan needs no imports.
"""

from collections.abc import Iterable, Mapping, Sequence
import difflib
import functools
import os
import pathlib
from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.core import gin_text

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Parents of `gin/...`: the top of a checkout, or an installed package.
GIN_ROOTS = str(_PACKAGE.parent), str(_PACKAGE)
REQUIRED = gin_text.Macro('gin.REQUIRED')
# Files that any command accepts, in the order of suggestions for a macro: first
# those that run anywhere or are the paper's choice.
_ADDED = (
  *('models/t5_tiny', 'lora/attention', 'rl/reinforce'),
  *('models/*', 'lora/*', 'rl/*', 'vocabularies/*'),
)


class Scan:
  """The content of gin files and bindings; later ones override earlier ones.

  Attributes:
    folders: folders in which files are looked for.
    files: each named file, and the folder in which it was found.
    bindings: gin text, usually `NAME=VALUE`, and the flag that gave it.
    macros: value of each macro, and the place that sets it.
    parameters: value and place of each parameter, by its name as written.
    imports: each imported module, and the place that imports it.
    notes: comments in the files, by macro.
  """

  def __init__(
    self,
    own: str,
    given: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    bindings: Sequence[tuple[str, str]] = (),
  ):
    """Scans gin files.

    Args:
      own: the command's own file, which comes first. It is this library's file
        in any current folder, unless the user names it too.
      given: the files that the user names: in the current folder, in
        `search_paths`, or this library's.
      search_paths: more folders.
      bindings: bindings that `complete` adds after the files.

    Raises:
      ConfigError: a file is missing, is not gin, or includes itself.
    """
    self.folders = ['', *search_paths, *GIN_ROOTS]
    self.files: list[tuple[str, str]] = []
    self.bindings = bindings
    self.macros: dict[str, tuple[Any, str]] = {}
    self.parameters: dict[str, tuple[Any, str]] = {}
    self.imports: list[tuple[str, str]] = []
    self.notes: dict[str, str] = {}
    others = [name for name in given if os.path.normpath(name) != own]
    first = () if len(others) < len(given) else GIN_ROOTS
    self._add_file(own, [*first, *self.folders])
    for name in others:
      self._add_file(name, self.folders)

  def uses(self) -> dict[str, str]:
    """Returns the macros that are read, with the first place of each."""
    found: dict[str, str] = {}
    for value, place in (*self.macros.values(), *self.parameters.values()):
      for name in gin_text.macros_in(value):
        found.setdefault(name, place)
    return found

  def required(self) -> dict[str, str]:
    """Returns the macros that are required but not set, with places."""
    known = self.macros.items()
    return {name: place for name, (value, place) in known if value == REQUIRED}

  def undefined(self) -> dict[str, str]:
    """Returns the macros that are read but not defined, with places."""
    # A name with a dot is a constant, which its module defines.
    return {
      name: place
      for name, place in self.uses().items()
      if name not in self.macros and '.' not in name
    }

  def _add_file(self, name, folders, outer=()) -> None:
    """Adds a file and its includes; `outer` are the files that include it."""
    if name in outer:
      chain = ' includes '.join((*outer, name))
      raise errors.ConfigError(f'gin files include each other: {chain}')
    paths = {os.path.join(folder, name): folder for folder in folders}
    path = next(filter(os.path.isfile, paths), None)
    if path is None:
      looked_in = ', '.join(folder or os.getcwd() for folder in folders)
      raise errors.ConfigError(
        f'no gin file {name}{did_you_mean(name, _own_files())} '
        f'(looked in {looked_in}; --gin_search_paths adds folders)'
      )
    if not outer:
      self.files.append((name, paths[path]))
    text = pathlib.Path(path).read_text('utf-8')
    notes = _notes(text)
    for each in gin_text.statements(text, name):
      if each.kind == 'include':
        # Look first in the folder where the including file was found.
        inner = [paths[path], *folders]
        self._add_file(each.name, inner, (*outer, name))
      else:
        self._add(each, f'{name}, line {each.line}')
        if each.kind == 'macro' and each.line in notes:
          self.notes[each.name] = notes[each.line]

  def _add(self, statement: gin_text.Statement, place: str) -> None:
    kind, name, value, _ = statement
    if kind == 'import':
      self.imports.append((name, place))
    else:
      values = self.macros if kind == 'macro' else self.parameters
      values[name] = value, place

  def complete(self, flags: Mapping[str, str] | None = None) -> None:
    """Adds the bindings, and finds missing and misspelt macros.

    Args:
      flags: the flag of each macro that has one.

    Raises:
      ConfigError: names all missing macros, or the first misspelt one.
    """
    given = {}
    for text, flag in self.bindings:
      try:
        for each in list(gin_text.statements(text, flag)):
          self._add(each, flag)
          if each.kind == 'macro':
            given[each.name] = flag
      except errors.ConfigError as error:
        name, _, value = text.partition('=')
        raise errors.ConfigError(
          f'{flag}: {value} is not a gin value, which is a Python literal, '
          '@name or %NAME. Text needs its own quotes inside the quotes of the '
          f'shell: --gin.{name}="\'{value}\'"'
        ) from error
    known = sorted(self.uses().keys() - {REQUIRED.name})
    for name in [each for each in given if each not in known]:
      files = ' or '.join(files_defining(name))
      hint = f'; is --gin_file={files} missing?' if files else ''
      raise errors.ConfigError(
        f'{given[name]} sets {name}, which none of the gin files reads'
        f'{hint or did_you_mean(name, known)} '
        f'(they read {", ".join(known) or "none"})'
      )
    missing = []
    for name, place in (self.required() | self.undefined()).items():
      way = f'--{(flags or {}).get(name, f"gin.{name}")}=...'
      why = f'(required by {place})'
      if name not in self.macros:
        files = ' or '.join(files_defining(name))
        way = f'--gin_file={files}, or {way}' if files else way
        why = f'({place} reads %{name})'
      missing.append(f'{way} {why}')
    if missing:
      raise errors.ConfigError('give ' + '\n  and '.join(missing))


def files_defining(name: str) -> list[str]:
  """Returns up to 3 gin files that any command accepts and define a macro."""
  files = dict.fromkeys(file for each in _ADDED for file in _own_files(each))
  return [file for file in files if name in _macros_of(file)][:3]


@functools.cache
def _macros_of(file: str) -> frozenset[str]:
  return frozenset(Scan(file).macros)


def did_you_mean(name: str, known: Iterable[str], before: str = '') -> str:
  """Returns a hint that suggests a similar name, or ''."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f'; did you mean {before}{close[0]}?' if close else ''


def _own_files(pattern: str = '**/*') -> list[str]:
  """Lists this library's gin files, as `gin/...` names for --gin_file."""
  return [
    path.relative_to(root).as_posix()
    for root in GIN_ROOTS
    for path in sorted(pathlib.Path(root).glob(f'gin/{pattern}.gin'))
  ]


def _notes(text: str) -> dict[int, str]:
  """Returns the comment behind or above each line, by line number from 1."""
  notes, above = {}, []
  for number, line in enumerate(text.splitlines(), start=1):
    code, _, behind = line.partition('  # ')
    if line.startswith('#'):
      above.append(line.removeprefix('#').strip())
      continue
    if code and (behind or above):
      notes[number] = behind or ' '.join(above)
    above = []
  return notes
