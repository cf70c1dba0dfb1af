"""JSON that every reader takes: without NaN and Infinity, which are not JSON.

Python writes and reads both, and jq, pandas, browsers and BigQuery stop at
them.
"""

from collections.abc import Mapping
import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
  """Writes a value as JSON, other letters than ASCII as they are.

  Args:
    value: of dicts, lists, text, numbers, booleans and None.
    indent: spaces of a level; None for one line.

  Raises:
    ValueError: a number is NaN or infinite. Where it is one that may be
      undefined, `null_nonfinite` comes first.
  """
  return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def loads(text: str) -> Any:
  """Reads JSON.

  Raises:
    ValueError: it is not JSON, NaN and Infinity included.
  """
  return json.loads(text, parse_constant=_refuse)


def null_nonfinite(value: Any) -> Any:
  """Copies a value, with None in the place of numbers that are not finite."""
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, Mapping):
    return {name: null_nonfinite(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [null_nonfinite(each) for each in value]
  return value


def _refuse(constant: str):
  raise ValueError(f'{constant} is not JSON; write null')
