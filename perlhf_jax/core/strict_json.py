"""JSON that every reader takes, and that is no trap for the one who reads it.

Python writes and reads NaN and Infinity, at which jq, pandas, browsers and
BigQuery stop. It also fails with a RecursionError, which is no ValueError, at
what is nested too deeply: a few bytes for each level.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

# Levels of lists and objects in each other. Records of data sets have under 10.
MAX_DEPTH = 100


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


def loads(text: str | bytes, *, allow_nan: bool = False) -> Any:
  """Reads JSON.

  Args:
    text: a document; bytes are UTF-8.
    allow_nan: whether NaN and Infinity are taken, as pandas writes them into
      data sets.

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


def _check_depth(value: Any) -> None:
  """Raises a ValueError for a value that is nested too deeply.

  Python's own limit depends on its version and on who calls.
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
