"""Checks of the numbers that a configuration gives."""

import math
import numbers
from typing import Any

from perlhf_jax.core import errors


def check_number(
  name: str, value: Any, least: float, most: float = math.inf
) -> None:
  """Checks a real number against its bounds, which are allowed values.

  Args:
    name: what the user calls it, for the message.
    value: what the user gave.
    least: the smallest value allowed.
    most: the largest, infinity excluded.

  Raises:
    ConfigError: it is no number or out of bounds.
  """
  if _is_number(value, numbers.Real) and least <= value <= most:
    if math.isfinite(value):
      return
  bounds = f'of at least {least:g}'
  if most < math.inf:
    bounds = f'from {least:g} to {most:g}'
  raise errors.ConfigError(f'{name} is {value!r}; set it to a number {bounds}.')


def check_positive(name: str, value: Any) -> None:
  """Checks a real number above 0.

  Args:
    name: what the user calls it, for the message.
    value: what the user gave.

  Raises:
    ConfigError: it is no number, not finite, or not above 0.
  """
  if _is_number(value, numbers.Real) and 0 < value < math.inf:
    return
  raise errors.ConfigError(f'{name} is {value!r}; set it to a number above 0.')


def check_whole_number(name: str, value: Any, least: int) -> None:
  """Checks a whole number.

  Args:
    name: what the user calls it, for the message.
    value: what the user gave.
    least: the smallest value allowed.

  Raises:
    ConfigError: it is no whole number or too small.
  """
  if _is_number(value, numbers.Integral) and value >= least:
    return
  raise errors.ConfigError(
    f'{name} is {value!r}; set it to a whole number of at least {least}.'
  )


def _is_number(value: Any, kind: type) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)
