"""Numbers and texts of files, which may hold anything, as a page shows them."""

from collections.abc import Iterator, Mapping
import math
import re
from typing import Any

# Larger numbers would leave a plot without a scale.
_LARGEST = 1e30
# What is shown where there is no value.
NONE = '-'
_LABELS = {
  'roc_auc': 'ROC-AUC',
  'kl_k1': 'KL to the reference (k1, nats)',
  'kl_k3': 'KL to the reference (k3, nats)',
  'judge_score': "judge's score",
  'score': 'score (reward)',
  'response_length': 'response length (tokens)',
  'win_rate': 'win rate',
  'seconds_per_step': 'seconds per step',
  'examples_per_second': 'examples per second',
  'step_memory_bytes': 'memory of a step',
  'trainable_fraction': 'trainable share',
}
_SHARES = re.compile(
  r'(^|[./])(\w*accuracy|win_rate|exact_match|truncated|padding|disputed'
  r'|longer_scored_higher|longer_chosen|trainable_fraction)(/\w+)?'
  r'(_standard_error)?$'
)
# What neither HTML nor SVG can hold, and what turns text around.
_UNPRINTABLE = re.compile(
  '[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff'
  '\u200e\u200f\u202a-\u202e\u2066-\u2069]'
)


def number(value: Any) -> float | None:
  """Returns a value as a float; None unless it is a number to plot."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  if isinstance(value, int) and abs(value) > _LARGEST:
    return None
  value = float(value)
  return value if math.isfinite(value) and abs(value) <= _LARGEST else None


def numbers(values: Any) -> list[float | None]:
  """Returns a list of numbers, with None for others; empty if it is no list."""
  return [number(each) for each in values] if isinstance(values, list) else []


def shortened(value: Any, limit: int) -> str:
  """Returns a value as text that can be shown, of at most about `limit`."""
  text = value if isinstance(value, str) else repr(value)
  more = len(text) - limit
  text = _UNPRINTABLE.sub('\ufffd', text[:limit])
  return f'{text}… ({more:,} more characters)' if more > 0 else text


def label(name: str) -> str:
  """Returns the name of a metric in words."""
  known = _LABELS.get(name)
  return known or shortened(name, 60).replace('/', ': ').replace('_', ' ')


def is_share(name: str) -> bool:
  """Returns whether a metric is shown in percent."""
  return bool(_SHARES.search(name))


def shown(name: str, value: Any) -> str:
  """Returns the value of a metric as text.

  Args:
    name: name of the metric, which decides the unit.
    value: the value; a dash is shown for anything but a number.
  """
  value = number(value)
  if value is None:
    return NONE
  if name.endswith('bytes'):
    return f'{value / 2**20:,.1f} MiB'
  if name.endswith('trainable_fraction'):
    return f'{value:.2%}'
  if is_share(name):
    return f'{value:.1%}'
  if value == int(value) and abs(value) < 1e15:
    return f'{value:,.0f}'
  return f'{value:.4g}' if abs(value) < 10_000 else f'{value:,.0f}'


def flat(
  value: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, float]]:
  """Yields the numbers of nested objects, by names with dots.

  Args:
    value: content of a JSON file; lists are left out.
    prefix: begins the names.
  """
  for name, each in value.items():
    if isinstance(each, Mapping):
      yield from flat(each, f'{prefix}{name}.')
    elif (found := number(each)) is not None:
      yield f'{prefix}{name}', found
