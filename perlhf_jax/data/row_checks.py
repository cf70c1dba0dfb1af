"""What makes a text example unusable, whatever file it came from."""

from collections.abc import Mapping
import numbers
from typing import Any

# Text features of each kind of task, and how messages call them.
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
# Numbers of each kind, with the value that stands for an absent one.
NUMBER_FEATURES: Mapping[str, Mapping[str, float | None]] = {
  'sft': {},
  'pairwise': {'margin': 0.0},
  'pointwise': {'label': None},
  'prompts': {},
}


def find_problem(kind: str, example: Mapping[str, Any]) -> str | None:
  """Says what is wrong with a text example, None if nothing is.

  Args:
    kind: sft, pairwise, pointwise or prompts.
    example: the text features as str, the numbers as numbers.
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
  return None
