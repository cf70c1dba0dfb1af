"""Checks the values that gin binds, before objects are made from them.

The annotations of fields and arguments give types and bounds
(`core/checks.py`); messages name the macro and the place that sets it.
"""

from collections.abc import Mapping
import inspect
import sys
from typing import Any

from perlhf_jax.cli import gin_scan
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import gin_text


def check_module(scan: gin_scan.Scan, module: str) -> None:
  """Checks all gin bindings of the classes and functions of a module.

  Does not check values of `@references`, which only gin can make; the class or
  function that receives them must.

  Args:
    scan: scan of all files and bindings.
    module: name of the module, which must be imported.

  Raises:
    ConfigError: there is no such parameter, or its value has another type or is
      out of bounds.
  """
  for key, (value, place) in scan.parameters.items():
    selector, _, parameter = key.rpartition('.')
    configurable = _find(selector.rpartition('/')[2], module)
    if configurable is None:
      continue
    name = f'{configurable.__name__}.{parameter}'
    _check_name(configurable, parameter, place)
    hints = _annotations(configurable)
    known, set_by, place = _resolve(value, scan, place)
    try:
      checks.check(set_by or name, known, hints.get(parameter, Any))
    except errors.ConfigError as error:
      sets = f' It sets {name}.' if set_by else ''
      raise errors.ConfigError(f'{error}{sets} ({place})') from error


def _check_name(configurable: Any, parameter: str, place: str) -> None:
  """Raises a ConfigError for a misspelt parameter."""
  try:
    known = inspect.signature(configurable).parameters
  except (TypeError, ValueError):  # Written in C.
    return
  takes_any = any(each.kind is each.VAR_KEYWORD for each in known.values())
  if parameter not in known and not takes_any:
    hint = gin_scan.did_you_mean(parameter, known)
    raise errors.ConfigError(
      f'{place}: {configurable.__name__} has no parameter {parameter}'
      f'{hint or "; it has " + ", ".join(known)}'
    )


def _find(selector: str, module: str) -> Any:
  """Returns the callable that a selector names in a module, or None."""
  name = selector.rpartition('.')[2]
  full = f'{module}.{name}'
  if full != selector and not full.endswith(f'.{selector}'):
    return None
  found = getattr(sys.modules[module], name, None)
  return found if callable(found) else None


def _annotations(configurable: Any) -> Mapping[str, Any]:
  """Returns the annotations of an object; {} if they cannot be read."""
  try:
    return checks.annotations_of(configurable)
  except (NameError, TypeError):
    # A user's class may name types that only a type checker imports.
    return {}


def _resolve(
  value: Any, scan: gin_scan.Scan, place: str
) -> tuple[Any, str | None, str]:
  """Replaces macros by their values, and references by `checks.UNKNOWN`.

  Returns:
    The value; the macro, if the whole value is one; and where it was set.
  """
  macro = None
  while isinstance(value, gin_text.Macro):
    if value.name not in scan.macros:
      return checks.UNKNOWN, None, place
    macro = value.name
    value, place = scan.macros[macro]
  return _known(value, scan), macro, place


def _known(value: Any, scan: gin_scan.Scan) -> Any:
  if isinstance(value, gin_text.Reference):
    return checks.UNKNOWN
  if isinstance(value, gin_text.Macro):
    return _resolve(value, scan, '')[0]
  if isinstance(value, dict):
    return {key: _known(item, scan) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(_known(item, scan) for item in value)
  return value
