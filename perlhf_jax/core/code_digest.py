"""A digest of the user's code, to detect that a function has changed."""

import ast
from collections.abc import Callable
import hashlib
import inspect
import pathlib
from typing import Any

from perlhf_jax.core import user_code


def digest(function: Callable[..., Any]) -> str | None:
  """Returns a digest of the module that defines a function.

  The digest covers the whole module, because the function may call others in
  it. Comments and layout do not change it.

  Args:
    function: a function, a partial of one, or another callable object.

  Returns:
    16 hexadecimal digits. None for functions of Python, of this package and of
    libraries, whose versions are recorded elsewhere, and for code without a
    file.
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
