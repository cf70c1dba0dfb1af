"""A digest of the user's code, to notice that a function has changed."""

import ast
from collections.abc import Callable
import hashlib
import inspect
import pathlib
from typing import Any

from perlhf_jax.core import user_code


def digest(function: Callable[..., Any]) -> str | None:
  """Returns 16 hexadecimal digits of the module that defines a function.

  The whole module counts, so that the functions that this one calls there
  count too. Comments and layout do not.

  Args:
    function: a function, a partial of one, or an object that can be called.

  Returns:
    None for functions of Python, of this package and of libraries, whose
    versions are recorded elsewhere, and for code that lies in no file.
  """
  function = user_code.unwrapped(function)
  named = function if hasattr(function, '__qualname__') else type(function)
  try:
    path = inspect.getsourcefile(inspect.unwrap(named))
    if path is None or not user_code.is_own(path):
      return None
    tree = ast.parse(pathlib.Path(path).read_bytes())
  except (OSError, SyntaxError, TypeError, ValueError):
    return None
  return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]
