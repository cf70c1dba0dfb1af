"""A digest of everything that a user's function depends on.

The digest covers the function and, recursively, the code that it calls, closes
over and names, except for installed packages. A function that may depend on
anything else, such as a file or the clock, has no digest, because the digest
would miss a change.
"""

import builtins
from collections.abc import Iterator, Mapping
import dataclasses
import dis
import enum
import functools
import hashlib
import logging
import pathlib
import re
import sys
import types
from typing import Any

from perlhf_jax.core import user_code

# Names through which code reads something other than its arguments.
_OUTSIDE = frozenset(
  'GFile Random choice environ eval exec exists fromfile getenv getmtime glob'
  ' globals hash http input iterdir listdir load loadtxt locals now open'
  ' perf_counter randint randn random read_bytes read_csv read_text requests'
  ' scandir shuffle socket stat subprocess system time time_ns today urandom'
  ' urlopen urllib uuid1 uuid4 vars walk json_documents whole_files'.split()
)
# Modules of this package whose functions read files that the caller names.
_READERS = frozenset(
  ['perlhf_jax.data.json_documents', 'perlhf_jax.data.whole_files']
)
_PLAIN = bool | int | float | complex | str | bytes | None


class UnknownError(Exception):
  """A value has no digest; the message says why."""


def digest(value: Any) -> str:
  """Returns the digest of a function, or of plain values and functions.

  Args:
    value: a function, another callable, or numbers and text, also in lists,
      dicts and data classes.

  Raises:
    UnknownError: the dependencies of the value cannot be determined.
  """
  walk = _Walk()
  walk.value(value)
  return walk.hexdigest()


class _Walk:
  """Hashes a value and, recursively, everything that it depends on."""

  def __init__(self):
    self._hash = hashlib.sha256()
    self._seen: dict[int, Any] = {}  # Keeps values alive: ids stay unique.
    self._files: set[str] = set()
    self._taken: set[tuple[str, str, frozenset[str]]] = set()

  def hexdigest(self) -> str:
    return self._hash.hexdigest()

  def value(self, value: Any) -> None:
    """Adds a value of any kind."""
    self._add(f'{type(value).__module__}.{type(value).__qualname__}')
    if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
      self._add(repr(value))
    elif isinstance(value, types.FunctionType):
      self._function(value)
    elif isinstance(value, types.ModuleType):
      self._add(value.__name__)
    elif isinstance(value, type):
      self._class(value)
    elif isinstance(value, enum.Enum):
      self._class(type(value))
      self._add(value.name)
    elif isinstance(value, set | frozenset):
      self._several(sorted(value, key=repr))
    elif isinstance(value, list | tuple):
      self._several(value)
    elif isinstance(value, Mapping):
      self._several([each for item in value.items() for each in item])
    elif isinstance(value, re.Pattern):
      self._several([value.pattern, value.flags])
    elif isinstance(value, pathlib.PurePath):
      self._add(str(value))
    elif isinstance(value, functools.partial):
      self._several([value.func, value.args, value.keywords])
    elif isinstance(value, staticmethod | classmethod):
      self.value(value.__func__)
    elif isinstance(value, property):
      self._several([value.fget, value.fset])
    elif isinstance(value, functools._lru_cache_wrapper):
      self.value(value.__wrapped__)
    elif isinstance(value, types.MethodType):
      self._several([value.__self__, value.__func__])
    elif isinstance(value, types.BuiltinFunctionType):
      self._builtin(value)
    elif isinstance(value, types.MethodDescriptorType):
      self._add(value.__qualname__)
    elif isinstance(value, logging.Logger):
      self._add(value.name)
    else:
      self._object(value)

  def _add(self, text: str) -> None:
    data = text.encode('utf-8', 'surrogatepass')
    self._hash.update(b'%d:' % len(data) + data)

  def _several(self, values) -> None:
    self._add(str(len(values)))
    for each in values:
      self.value(each)

  def _is_new(self, thing: Any) -> bool:
    if id(thing) in self._seen:
      return False
    self._seen[id(thing)] = thing
    return True

  def _function(self, function: types.FunctionType) -> None:
    self._add(f'{function.__module__}.{function.__qualname__}')
    if not self._is_new(function):
      return
    if not _is_own(function.__module__, function.__code__.co_filename):
      if function.__module__ in _READERS:
        raise UnknownError(f'{function.__qualname__} reads other files')
      return
    self._file(function.__code__.co_filename)
    names = self._code(function.__code__, function)
    self._several([function.__defaults__, function.__kwdefaults__])
    for name, cell in zip(
      function.__code__.co_freevars, function.__closure__ or (), strict=True
    ):
      self._add(name)
      try:
        self._named(cell.cell_contents, names)
      except ValueError:  # The cell is not set yet.
        continue
    for name in sorted(names):
      if name in function.__globals__:
        self._add(name)
        self._named(function.__globals__[name], names)

  def _named(self, value: Any, names: set[str]) -> None:
    """Adds a named value and, for a module, its attributes in `names`."""
    self.value(value)
    if not isinstance(value, types.ModuleType):
      return
    path = getattr(value, '__file__', None)
    if path is None or not _is_own(value.__name__, path):
      # Our modules that read other files are listed by name.
      if value.__name__ in _READERS:
        raise UnknownError(f'{value.__name__} reads other files')
      return
    self._file(path)
    for name in sorted(names & vars(value).keys()):
      if (value.__name__, name, frozenset(names)) not in self._taken:
        self._taken.add((value.__name__, name, frozenset(names)))
        self._add(name)
        self._named(vars(value)[name], names)

  def _code(self, code: types.CodeType, function: Any) -> set[str]:
    """Adds code, and returns the names that it and its nested code use."""
    self._add(code.co_code.hex())
    self._several([code.co_varnames, code.co_names, code.co_freevars])
    names = set(code.co_names)
    outside = names & _OUTSIDE
    if outside:
      place = user_code.place_of(function)
      raise UnknownError(f'{place} uses {min(outside)!r}')
    for instruction in dis.get_instructions(code):
      if instruction.opname == 'IMPORT_NAME':
        module = sys.modules.get(instruction.argval)
        path = getattr(module, '__file__', None) or ''
        if module is None or _is_own(module.__name__, path):
          place = user_code.place_of(function)
          raise UnknownError(f'{place} imports {instruction.argval!r}')
    for constant in code.co_consts:
      if isinstance(constant, types.CodeType):
        names |= self._code(constant, function)
      else:
        self.value(constant)
    return names

  def _class(self, kind: type) -> None:
    self._add(f'{kind.__module__}.{kind.__qualname__}')
    module = sys.modules.get(kind.__module__)
    path = getattr(module, '__file__', None) or ''
    if not self._is_new(kind) or not _is_own(kind.__module__, path):
      return
    self._file(path)
    self._several(kind.__bases__)
    for name, member in sorted(vars(kind).items()):
      # Results that are equal in every process cannot depend on `__hash__`.
      if name != '__hash__' and isinstance(
        member,
        types.FunctionType | staticmethod | classmethod | property | _PLAIN,
      ):
        self._add(name)
        self.value(member)

  def _builtin(self, function: types.BuiltinFunctionType) -> None:
    self._add(function.__qualname__)
    owner = function.__self__
    if owner is not None and not isinstance(owner, types.ModuleType):
      self.value(owner)

  def _object(self, value: Any) -> None:
    kind = type(value)
    module = sys.modules.get(kind.__module__)
    path = getattr(module, '__file__', None) or ''
    is_known = dataclasses.is_dataclass(kind) or (
      _is_own(kind.__module__, path) and hasattr(value, '__dict__')
    )
    if not is_known:
      raise UnknownError(
        f'the dependencies of {kind.__module__}.{kind.__qualname__} are unknown'
      )
    self._class(kind)
    if self._is_new(value):
      self._several(sorted(_attributes(value)))

  def _file(self, path: str) -> None:
    """Adds the file of a module; code of an interactive session has none."""
    if path in self._files:
      return
    self._files.add(path)
    try:
      self._add(hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest())
    except OSError:
      self._add('no file')


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
  if dataclasses.is_dataclass(value):
    names = [field.name for field in dataclasses.fields(value)]
  else:
    names = list(vars(value))
  return ((name, getattr(value, name)) for name in names)


def _is_own(module: str | None, path: str) -> bool:
  return module != builtins.__name__ and user_code.is_own(path)
