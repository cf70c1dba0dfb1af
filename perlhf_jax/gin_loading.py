"""Loads a command's gin configuration; every mistake is a ConfigError.

First a scan (gin_scan.py), which needs no import; then the imports that the
files ask for, each with a check of what is bound of it (gin_checks.py); then
gin's own parse. What fails after the imports is therefore the configuration's
fault, and what fails in them is not.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import re
from typing import Any, NamedTuple

import gin

from perlhf_jax import gin_checks
from perlhf_jax import gin_scan
from perlhf_jax.core import errors
from perlhf_jax.core import user_code


class Binding(NamedTuple):
  """A binding from the command line.

  Attributes:
    text: gin text, usually `NAME=VALUE`.
    flag: the argument that gave it, to be shown in messages.
  """

  text: str
  flag: str


@dataclasses.dataclass(frozen=True)
class Config:
  """A command's gin files and bindings, scanned and found complete.

  Attributes:
    files: gin files, in order.
    bindings: bindings from the command line, which come after the files.
    search_paths: folders in which files are looked for.
    scan: what files and bindings say.
  """

  files: tuple[str, ...]
  bindings: tuple[Binding, ...]
  search_paths: tuple[str, ...]
  scan: gin_scan.Scan


def read(
  files: Sequence[str],
  bindings: Sequence[Binding],
  search_paths: Sequence[str] = (),
  flags: dict[str, str] | None = None,
) -> Config:
  """Scans a configuration; imports nothing, so that it takes no time.

  Args:
    files: gin files, in order.
    bindings: bindings from the command line.
    search_paths: folders to look in before this library's.
    flags: macros that have a flag of their own, with its name.

  Returns:
    The configuration, for `load`.

  Raises:
    ConfigError: a file is missing, something is not gin, a required macro is
      not given, or one on the command line is read by no file.
  """
  scan = gin_scan.Scan()
  for file in files:
    gin_scan.scan_file(scan, file, search_paths)
  given = {}
  for binding in bindings:
    for name in gin_scan.scan_binding(scan, binding.text, binding.flag):
      given[name] = binding.flag
  gin_scan.check(scan, given, flags)
  return Config(
    files=tuple(files),
    bindings=tuple(bindings),
    search_paths=tuple(search_paths),
    scan=scan,
  )


def load(config: Config, fn: Callable[..., Any]) -> Callable[[], Any]:
  """Makes `config` the configuration of this process.

  Args:
    config: what `read` gave.
    fn: the function that the command calls.

  Returns:
    `fn` with its arguments bound.

  Raises:
    ConfigError: an import does not exist, a name or a parameter is misspelt, a
      value is of another type or out of bounds, or an argument of `fn` is bound
      nowhere.
  """
  for statement in sorted(config.scan.imports, key=_is_slow):
    _import(statement)
    gin_checks.check_module(config.scan, statement.module)
  gin.clear_config()
  for path in (*config.search_paths, *map(str, gin_scan.GIN_ROOTS)):
    # Gin keeps search paths for good; one that it has already does no harm.
    gin.add_config_file_search_path(path)
  for file in config.files:
    path = gin_scan.find_file(file, config.search_paths)
    _explained(lambda path=path: gin.parse_config_file(path), file)
  for binding in config.bindings:
    _explained(lambda text=binding.text: gin.parse_config(text), binding.flag)
  _explained(gin.finalize, 'the gin configuration')
  return _bound(config, fn)


def arguments_of(fn: Callable[..., Any]) -> dict[str, Any]:
  """Makes the arguments that the configuration binds of a function.

  Raises:
    UserError: by what makes one of them.
  """
  return gin.get_bindings(fn, resolve_references=True)


def _bound(config: Config, fn: Callable[..., Any]) -> Callable[[], Any]:
  """Gives gin's version of `fn`, having checked that it can be called."""
  given = {}
  bound = fn
  with contextlib.suppress(ValueError):  # Gin does not know it: nothing bound.
    given = gin.get_bindings(fn, resolve_references=False)
    bound = gin.get_configurable(fn)
  missing = [
    name
    for name, parameter in inspect.signature(fn).parameters.items()
    if parameter.default is parameter.empty
    and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    and name not in given
  ]
  if missing:
    module = fn.__module__.rsplit('.', maxsplit=1)[-1]
    raise errors.ConfigError(
      f'none of {", ".join(config.files)} binds {", ".join(missing)} of '
      f'{module}.{fn.__name__}; a gin file of the command must.'
    )
  return bound


def _is_slow(statement: gin_scan.Import) -> bool:
  """Says whether an import may take seconds, because of TensorFlow.

  These come last, so that most mistakes are found before.
  """
  fast = ('perlhf_jax.models.', 'perlhf_jax.rl.', 'perlhf_jax.training.')
  return not statement.module.startswith(fast)


def _import(statement: gin_scan.Import) -> None:
  """Imports a module that a gin file names."""
  module = statement.module
  try:
    importlib.import_module(module)
  except Exception as error:
    is_missing = isinstance(error, ModuleNotFoundError) and error.name
    if is_missing and f'{module}.'.startswith(f'{error.name}.'):
      raise errors.ConfigError(
        f'{statement.place}: no module {error.name} to import; is it misspelt, '
        'or its folder missing from PYTHONPATH?'
      ) from error
    # A fault of our own keeps its traceback.
    if module.startswith('perlhf_jax.') or isinstance(error, errors.UserError):
      raise
    raise errors.ConfigError(
      f'{statement.place}: the module {module} cannot be imported: '
      f'{user_code.describe(error)}'
    ) from error


def _explained(action: Callable[[], Any], source: str) -> None:
  """Runs a step of gin's and turns its complaints into a ConfigError."""
  try:
    action()
  except (
    AttributeError,
    KeyError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as error:
    # Gin appends to the message where it was, innermost first.
    message, *places = str(error).split('\n  In ')
    where = re.match(r'file "(.*)", line (\d+)', places[0] if places else '')
    if where:
      source = f'{where[1]}, line {where[2]}'
    raise errors.ConfigError(
      f'{source}: {message}{_suggest_parameter(message)}'
    ) from error


def _suggest_parameter(message: str) -> str:
  """Suggests a name for a misspelt parameter."""
  match = re.search(
    r"Configurable '(.+)' doesn't have a parameter named '(.+)'", message
  )
  if not match:
    return ''
  configurable = gin.get_configurable(match[1])
  if dataclasses.is_dataclass(configurable):  # Gin hides its signature.
    known = [field.name for field in dataclasses.fields(configurable)]
  else:
    known = list(inspect.signature(configurable).parameters)
  close = difflib.get_close_matches(match[2], known, n=1)
  if close:
    return f' Did you mean {close[0]}?'
  return f' It has {", ".join(known)}.'
