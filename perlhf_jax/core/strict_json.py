"""Writes JSON that every reader accepts, and reads hostile JSON safely.

Python writes and reads NaN and Infinity, which jq, pandas, browsers and
BigQuery refuse. For deep nesting, which costs only a few bytes per level, it
raises a RecursionError instead of a ValueError.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

# Maximum nesting of lists and objects. Records of data sets have under 10.
MAX_DEPTH = 100


def dumps(value: Any, indent: int | None = None) -> str:
  """Writes a value as JSON, without escaping non-ASCII characters.

  Args:
    value: consists of dicts, lists, text, numbers, booleans and None.
    indent: spaces per level; None for one line.

  Raises:
    ValueError: a number is NaN or infinite. Call `null_nonfinite` first if
      numbers may be undefined.
  """
  return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def loads(text: str | bytes, *, allow_nan: bool = False) -> Any:
  """Reads JSON.

  Args:
    text: a document; bytes are UTF-8.
    allow_nan: whether to accept NaN and Infinity, which pandas writes into data
      sets.

  Raises:
    ValueError: it is not JSON, not UTF-8, or nested more than `MAX_DEPTH`
      levels deep.
  """
  if isinstance(text, bytes):
    text = text.decode('utf-8')
  try:
    value = json.loads(text, parse_constant=None if allow_nan else _refuse)
  except RecursionError:
    raise _too_deep() from None
  _check_depth(value)
  return value


def null_nonfinite(value: Any) -> Any:
  """Copies a value, replacing NaN and infinite numbers by None."""
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, Mapping):
    return {name: null_nonfinite(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [null_nonfinite(each) for each in value]
  return value


def _refuse(constant: str):
  raise ValueError(f'{constant} is not JSON; write null')


def _check_depth(value: Any) -> None:
  """Raises a ValueError if a value is nested too deeply.

  Python's own limit depends on its version and on the depth of the call stack.
  """
  level = [value] if isinstance(value, dict | list) else []
  for _ in range(MAX_DEPTH):
    if not level:
      return
    level = [
      inner
      for each in level
      for inner in (each.values() if isinstance(each, dict) else each)
      if isinstance(inner, dict | list)
    ]
  if level:
    raise _too_deep()


def _too_deep() -> ValueError:
  return ValueError(f'it is nested more than {MAX_DEPTH} levels deep')
