"""The gin configuration of this process, as text.

Stages write it to MODEL_DIR before they start. It is the whole parsed
configuration. Gin's "operative" configuration is complete only after everything
was called, which is too late for a run that dies.
"""

from collections.abc import Callable
import contextlib
import inspect
from typing import Any

import gin

from perlhf_jax.core import gin_text
from perlhf_jax.core import user_code


def config_text() -> str:
  """Returns the configuration as the text of a gin file.

  Returns:
    Gin statements: imports, macros, bindings. Empty if no gin was parsed, as in
    a test that calls a stage directly.
  """
  return gin.config_str()


def bound_arguments(function: Callable[..., Any]) -> set[str]:
  """Returns the names of a function's arguments that gin binds.

  For a reference with a scope, `@scope/my_module.my_function`, gin does not
  tell which scope; the result then has all arguments.
  """
  inner = getattr(function, '__wrapped__', None)
  if hasattr(inner, '__wrapped__'):  # Gin wraps once more for a scope.
    return set(inspect.signature(function).parameters)
  with contextlib.suppress(ValueError):  # Not a gin configurable.
    return set(gin.get_bindings(function, resolve_references=False))
  return set()


def bound_values(function: Callable[..., Any]) -> dict[str, str]:
  """Returns gin's bindings of a function, by their names in the gin files.

  Args:
    function: the original function or gin's wrapper, with a scope or without.

  Returns:
    A dict such as `{'scope/my_module.my_function.factor': '2.0'}`, with macros
    resolved. It covers all scopes, because gin does not tell which scope a
    reference has.
  """
  name = user_code.name_of(inspect.unwrap(function))
  values = _values(config_text())
  bound = {}
  for key, value in values.items():
    selector = key.rpartition('.')[0].rpartition('/')[2]
    if selector and f'.{name}'.endswith(f'.{selector}'):
      if isinstance(value, gin_text.Macro):
        value = values.get(value.name, value)
      bound[key] = repr(value)
  return bound


def changes(before: str, after: str) -> dict[str, str]:
  """Compares two configurations, ignoring order and comments.

  Args:
    before: gin statements.
    after: gin statements.

  Returns:
    The change of each changed macro or parameter, such as `{'LEARNING_RATE':
    '0.001 -> 0.01'}`.
  """
  old, new = _values(before), _values(after)
  return {
    name: f'{_shown(old, name)} -> {_shown(new, name)}'
    for name in sorted(old.keys() | new.keys())
    if name not in old or name not in new or old[name] != new[name]
  }


def macros(text: str) -> dict[str, Any]:
  """Returns the macros of a configuration, by name.

  Args:
    text: gin statements.

  Returns:
    Numbers, strings, booleans and None as they are, everything else as text.
    The value of a macro that names another macro is that macro's value.
  """
  values = _values(text)
  found = {}
  for name, value in values.items():
    if '.' in name:
      continue
    if isinstance(value, gin_text.Macro):
      value = values.get(value.name, value)
    is_plain = value is None or isinstance(value, bool | int | float | str)
    found[name] = value if is_plain else repr(value)
  return found


def _values(text: str) -> dict[str, Any]:
  """Returns the values of macros and parameters in gin text, by name."""
  return {
    each.name: each.value
    for each in gin_text.statements(text, 'the configuration')
    if each.kind in ('macro', 'parameter')
  }


def _shown(values: dict[str, Any], name: str) -> str:
  return repr(values[name]) if name in values else 'not set'
