"""Checks of text examples, independent of their source."""

from collections.abc import Mapping, Sequence
import numbers
from typing import Any

from perlhf_jax.core import errors

# Text features of each kind of task, and their names in messages.
TEXT_FEATURES: Mapping[str, Mapping[str, str]] = {
  'sft': {'inputs': 'prompt', 'targets': 'response'},
  'pairwise': {
    'inputs': 'prompt',
    'chosen': 'chosen response',
    'rejected': 'rejected response',
  },
  'pointwise': {'inputs': 'prompt', 'targets': 'response'},
  'prompts': {'inputs': 'prompt'},
}
# Number features of each kind, with their default; None if required.
NUMBER_FEATURES: Mapping[str, Mapping[str, float | None]] = {
  'sft': {},
  'pairwise': {'margin': 0.0},
  'pointwise': {'label': None},
  'prompts': {},
}
# List features, for tasks that declare them: the images of an example, each an
# encoded PNG or JPEG (bytes) or the path of such a file (str); and, for
# prompts, the answers that a judge accepts.
IMAGES, REFERENCES = LISTS = 'images', 'references'


def list_features(kind: str, images: bool, references: bool) -> tuple[str, ...]:
  """Returns the names of the list features that a task declares.

  Raises:
    ConfigError: a task that is not of kind prompts has references.
  """
  if references and kind != 'prompts':
    raise errors.ConfigError(
      f'A task of the kind {kind!r} takes no references; only prompts do.'
    )
  return (IMAGES,) * images + (REFERENCES,) * references


def find_problem(
  kind: str, example: Mapping[str, Any], lists: Sequence[str] = ()
) -> str | None:
  """Returns the problem of an example; None if it is usable.

  It does not check whether images can be decoded.

  Args:
    kind: sft, pairwise, pointwise or prompts.
    example: features, with text as str, numbers as numbers, and list features
      as lists.
    lists: list features that the task declares; each must have an item.
  """
  for name, what in TEXT_FEATURES[kind].items():
    if not isinstance(example[name], str):
      found = type(example[name]).__name__
      return f'the {what} ({name}) is {found}, not text'
    if not example[name].strip():
      return f'the {what} ({name}) is empty'
    try:
      example[name].encode('utf-8')
    except UnicodeEncodeError:
      return f'the {what} ({name}) holds half of a surrogate pair'
  if kind == 'pairwise' and example['chosen'] == example['rejected']:
    return 'the chosen and the rejected response are identical'
  for name in NUMBER_FEATURES[kind]:
    value = example.get(name, 0.0)
    if not isinstance(value, numbers.Real):
      return f'the {name} is {value!r}, not a number'
    if name == 'label' and value not in (0, 1):
      return f'the label is {value!r}, neither 0 nor 1'
    if value != value or value in (float('inf'), float('-inf')):
      return f'the {name} is {value!r}'
  for name in lists:
    problem = _list_problem(name, example.get(name))
    if problem:
      return problem
  return None


def _list_problem(name: str, items: Any) -> str | None:
  what, known = {
    IMAGES: ('image', (bytes, str)),
    REFERENCES: ('reference', (str,)),
  }[name]
  if items is None or (isinstance(items, list | tuple) and not items):
    return f'the example has no {what} ({name})'
  if not isinstance(items, list | tuple):
    return f'{name} is {type(items).__name__}, not a list'
  for item in items:
    if not isinstance(item, known) or not item:
      return f'{name} holds {item!r}, which is no {what}'
  return None
