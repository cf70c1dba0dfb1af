"""Checks what a gin configuration binds, before anything is made of it.

The annotations of fields and arguments say what they may be
(`core/checks.py`); messages name the macro and the place that set it.
"""

from collections.abc import Mapping
import sys
from typing import Any

from perlhf_jax import gin_scan
from perlhf_jax.core import checks
from perlhf_jax.core import errors


def check_module(scan: gin_scan.Scan, module: str) -> None:
  """Checks all that is bound of the classes and functions of a module.

  Values that only gin can make, of `@references`, are left to whoever takes
  them.

  Args:
    scan: all files and bindings.
    module: its name; it has been imported.

  Raises:
    ConfigError: a value is of another type than the parameter that it sets, or
      out of bounds.
  """
  for key, (value, place) in scan.parameters.items():
    selector, _, parameter = key.rpartition('.')
    selector = selector.rpartition('/')[2]  # Without the scope.
    configurable = _find(selector, module)
    if configurable is None:
      continue
    hints = _annotations(configurable)
    if parameter not in hints:
      continue  # Gin says so, with a suggestion.
    name = f'{configurable.__name__}.{parameter}'
    known, set_by, place = _resolve(value, scan, place)
    try:
      checks.check(set_by or name, known, hints[parameter])
    except errors.ConfigError as error:
      sets = f' It sets {name}.' if set_by else ''
      raise errors.ConfigError(f'{error}{sets} ({place})') from error


def _find(selector: str, module: str) -> Any:
  """Returns the object of a module that a selector names, or None."""
  name = selector.rpartition('.')[2]
  full = f'{module}.{name}'
  if full != selector and not full.endswith(f'.{selector}'):
    return None
  found = getattr(sys.modules[module], name, None)
  return found if callable(found) else None


def _annotations(configurable: Any) -> Mapping[str, Any]:
  """Returns the annotations of an object; none if they cannot be read."""
  try:
    return checks.annotations_of(configurable)
  except (NameError, TypeError):
    # A user's class may name types that exist for a type checker only.
    return {}


def _resolve(
  value: Any, scan: gin_scan.Scan, place: str
) -> tuple[Any, str | None, str]:
  """Replaces macros by their values, and references by `checks.UNKNOWN`.

  Returns:
    The value; the macro that is all of it, if one is; and where it was set.
  """
  macro = None
  while isinstance(value, gin_scan.Macro):
    if value.name not in scan.macros:
      return checks.UNKNOWN, None, place
    macro = value.name
    value, place = scan.macros[macro]
  return _known(value, scan), macro, place


def _known(value: Any, scan: gin_scan.Scan) -> Any:
  if isinstance(value, gin_scan.Reference):
    return checks.UNKNOWN
  if isinstance(value, gin_scan.Macro):
    return _resolve(value, scan, '')[0]
  if isinstance(value, dict):
    return {key: _known(item, scan) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(_known(item, scan) for item in value)
  return value
