"""Reads gin files without running them, to find mistakes at once.

Gin itself tells of most mistakes only after it has imported everything that a
configuration names (seconds, with TensorFlow), of one at a time, and not at all
of a misspelt macro on the command line. A scan needs no import.
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
# Where `gin/...` lies: at the top of a checkout, or in an installed package.
GIN_ROOTS = str(_PACKAGE.parent), str(_PACKAGE)
REQUIRED = gin_text.Macro('gin.REQUIRED')
# Files that any command may be given. Of several that define a macro the first
# is suggested first: it runs anywhere, or it is the paper's choice.
_ADDED = (
  *('models/t5_tiny', 'lora/attention', 'rl/reinforce'),
  *('models/*', 'lora/*', 'rl/*', 'vocabularies/*'),
)


class Scan:
  """What gin files and bindings say, later ones winning.

  Attributes:
    folders: where files are looked for.
    files: each file that was named, and the folder in which it was found.
    bindings: gin text, usually `NAME=VALUE`, and the argument that gave it.
    macros: the value of each macro, and the place that sets it.
    parameters: the same of each parameter, by its name as written.
    imports: every module that is imported, and the place that imports it.
    notes: what the comments of files say of each macro.
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
      own: a command's own file, which comes first. It is ours, wherever the
        command is started, unless it is given too.
      given: the files that the user names: in the current folder, in
        `search_paths`, or ours.
      search_paths: folders.
      bindings: for `complete`; they come after the files.

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
    """Returns each macro that is read, with the first place that reads it."""
    found: dict[str, str] = {}
    for value, place in (*self.macros.values(), *self.parameters.values()):
      for name in gin_text.macros_in(value):
        found.setdefault(name, place)
    return found

  def required(self) -> dict[str, str]:
    """Returns the macros that a file requires and none gives, with places."""
    known = self.macros.items()
    return {name: place for name, (value, place) in known if value == REQUIRED}

  def undefined(self) -> dict[str, str]:
    """Returns the macros that are read and nowhere defined, with places."""
    # A name with a dot is a constant, which only its module defines.
    return {
      name: place
      for name, place in self.uses().items()
      if name not in self.macros and '.' not in name
    }

  def _add_file(self, name, folders, outer=()) -> None:
    """Adds a file, and what it includes; `outer` are those that include it."""
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
        # What a file of ours includes is ours.
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
    """Adds the bindings, and finds the macros that are missing or misspelt.

    Args:
      flags: the flag of each macro that has one.

    Raises:
      ConfigError: names all that is missing, or the first that is misspelt.
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
          '@name or %NAME. Text needs quotes of its own, inside those of the '
          f'shell: --gin.{name}="\'{value}\'"'
        ) from error
    known = sorted(self.uses().keys() - {REQUIRED.name})
    for name in [each for each in given if each not in known]:
      files = ' or '.join(files_defining(name))
      hint = f'; is --gin_file={files} left out?' if files else ''
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
  """Lists gin files that define a macro and that any command may be given."""
  files = dict.fromkeys(file for each in _ADDED for file in _own_files(each))
  return [file for file in files if name in _macros_of(file)][:3]


@functools.cache
def _macros_of(file: str) -> frozenset[str]:
  return frozenset(Scan(file).macros)


def did_you_mean(name: str, known: Iterable[str], before: str = '') -> str:
  """Suggests a name that is close, if there is one."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f'; did you mean {before}{close[0]}?' if close else ''


def _own_files(pattern: str = '**/*') -> list[str]:
  """Lists this library's gin files by the names that a user gives them."""
  return [
    path.relative_to(root).as_posix()
    for root in GIN_ROOTS
    for path in sorted(pathlib.Path(root).glob(f'gin/{pattern}.gin'))
  ]


def _notes(text: str) -> dict[int, str]:
  """Returns the comment behind or above each line, by its number from 1."""
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
