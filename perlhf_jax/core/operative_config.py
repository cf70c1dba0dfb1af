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
