"""Checks the text examples of any source, once for each example."""

from collections.abc import Mapping, Sequence
import numbers
from typing import Any

from perlhf_jax.data import kinds


def find_problem(
  kind: kinds.Kind, example: Mapping[str, Any], lists: Sequence[str] = ()
) -> str | None:
  """Returns the problem of an example; None if it is usable.

  It does not check whether images can be decoded.

  Args:
    kind: kind of the task.
    example: features, with text as str, numbers as numbers, and list features
      as lists.
    lists: list features that the task declares; each must have an item.
  """
  for name, text in kind.texts.items():
    if problem := _text_problem(f'the {text.what} ({name})', example[name]):
      return problem
  if kind.distinct and len({example[n] for n in kind.distinct}) == 1:
    return f'the {" and the ".join(kind.distinct)} response are identical'
  for name, number in kind.numbers.items():
    value = example.get(name, 0.0)
    if not isinstance(value, numbers.Real):
      return f'the {name} is {value!r}, not a number'
    if number.allowed and value not in number.allowed:
      others = ' nor '.join(map(str, number.allowed))
      return f'the {name} is {value!r}, neither {others}'
    if value != value or value in (float('inf'), float('-inf')):
      return f'the {name} is {value!r}'
  for name in lists:
    if problem := _list_problem(name, example.get(name)):
      return problem
  return None


def _text_problem(what: str, text: Any) -> str | None:
  if not isinstance(text, str):
    return f'{what} is {type(text).__name__}, not text'
  if not text.strip():
    return f'{what} is empty'
  try:
    text.encode('utf-8')
  except UnicodeEncodeError:
    return f'{what} holds half of a surrogate pair'
  return None


def _list_problem(name: str, items: Any) -> str | None:
  what, known = {
    kinds.IMAGES: ('image', (bytes, str)),
    kinds.REFERENCES: ('reference', (str,)),
  }[name]
  if items is None or (isinstance(items, list | tuple) and not items):
    return f'the example has no {what} ({name})'
  if not isinstance(items, list | tuple):
    return f'{name} is {type(items).__name__}, not a list'
  for item in items:
    if not isinstance(item, known) or not item:
      return f'{name} holds {item!r}, which cannot be used as {what}'
  return None
