"""The gin configuration of this process, as text.

Stages write it to MODEL_DIR before they start. It is the whole parsed
configuration, not gin's "operative" one, which is known only when everything
has been called: too late for a run that dies.
"""

from collections.abc import Callable
import contextlib
import inspect
from typing import Any

import gin

from perlhf_jax.core import gin_text
from perlhf_jax.core import user_code


def config_text() -> str:
  """Gives the configuration as a gin file that would repeat it.

  Returns:
    Gin statements: imports, macros, bindings. Empty if nothing was parsed, as
    in a test that calls a stage directly.
  """
  return gin.config_str()


def bound_arguments(function: Callable[..., Any]) -> set[str]:
  """Gives the names of the arguments that gin binds of a function.

  Of a reference with a scope, `@scope/my_module.my_function`, gin does not say
  which scope; all its arguments count.
  """
  inner = getattr(function, '__wrapped__', None)
  if hasattr(inner, '__wrapped__'):  # Gin wraps once more for a scope.
    return set(inspect.signature(function).parameters)
  with contextlib.suppress(ValueError):  # Gin does not know it.
    return set(gin.get_bindings(function, resolve_references=False))
  return set()


def bound_values(function: Callable[..., Any]) -> dict[str, str]:
  """Gives what gin binds of a function, by the names that the gin files bind.

  Args:
    function: gin's or the original, with a scope or without.

  Returns:
    Such as `{'scope/my_module.my_function.factor': '2.0'}`, in any scope, for
    gin does not say which one a reference has; macros as what they stand for.
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
  """Compares two configurations; their order and comments do not count.

  Args:
    before: gin statements.
    after: gin statements.

  Returns:
    What changed of each macro or parameter that did, such as `{'LEARNING_RATE':
    '0.001 -> 0.01'}`.
  """
  old, new = _values(before), _values(after)
  return {
    name: f'{_shown(old, name)} -> {_shown(new, name)}'
    for name in sorted(old.keys() | new.keys())
    if name not in old or name not in new or old[name] != new[name]
  }


def _values(text: str) -> dict[str, Any]:
  """Reads the values of gin statements, by the names that they bind."""
  return {
    each.name: each.value
    for each in gin_text.statements(text, 'the configuration')
    if each.kind in ('macro', 'parameter')
  }


def _shown(values: dict[str, Any], name: str) -> str:
  return repr(values[name]) if name in values else 'not set'
