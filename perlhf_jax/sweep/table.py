"""The Markdown table of a sweep."""

from collections.abc import Iterator, Mapping
from typing import Any

from perlhf_jax.sweep import description
from perlhf_jax.sweep import results as results_lib

# Figures of a run that the table shows, if all compared runs have them.
_EXTRA = (
  ('kl_k1', 'KL (k1)', '{:.2f}'),
  ('trainable_fraction', 'trained', '{:.2%}'),
  ('seconds_per_step', 's/step', '{:.3f}'),
)
_NONE = '-'
# Above this, two digits after the point are enough.
_LARGE = 2


def markdown(content: Mapping[str, Any]) -> str:
  """Returns the table of a sweep.json, with notes below it."""
  arms, metric, baseline = (
    content[key] for key in ('arms', 'metric', 'baseline')
  )
  number = '{:.2f}' if _is_large(content) else '{:.4f}'
  columns = [
    each for each in _EXTRA if any(each[0] in a['extra'] for a in arms)
  ]
  head = ['arm', 'learning rate', f'{metric}, mean ± std', 'seeds']
  if baseline is not None:
    head.insert(3, f'difference to {baseline}, 95% interval')
  head += [*(title for _, title, _ in columns), 'rates tried']
  rows = [head, ['---'] * len(head)]
  for arm in arms:
    row = [
      arm['name'] + ' (baseline)' * (arm['name'] == baseline),
      _rate(arm),
      _mean(arm, number),
      str(len(arm['values'])),
    ]
    if baseline is not None:
      row.insert(3, _difference(arm, number))
    row += [_figure(arm['extra'].get(key), text) for key, _, text in columns]
    row.append(', '.join(map(description.rate_text, arm['learning_rates'])))
    rows.append(row)
  table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
  notes = '\n'.join(f'- {note}' for note in _notes(content))
  return f'# {content["name"]}\n\n{table}\n\n{notes}\n'


def _is_large(content) -> bool:
  means = [arm['mean'] for arm in content['arms'] if arm['mean'] is not None]
  return any(abs(mean) > _LARGE for mean in means)


def _rate(arm) -> str:
  best = arm['best_learning_rate']
  if best is None:
    return _NONE
  return description.rate_text(best) + ' (edge)' * arm['at_edge']


def _mean(arm, number) -> str:
  if arm['mean'] is None:
    return _NONE
  text = number.format(arm['mean'])
  return text if arm['std'] is None else f'{text} ± {number.format(arm["std"])}'


def _difference(arm, number) -> str:
  found = arm['difference']
  if found is None:
    return _NONE
  signed = number.replace(':', ':+')
  text = signed.format(found['mean'])
  if found['low'] is None:
    return text
  low, high = (signed.format(found[end]) for end in ('low', 'high'))
  return f'{text} [{low}, {high}]'


def _figure(value, text) -> str:
  return _NONE if value is None else text.format(value)


def _notes(content) -> Iterator[str]:
  """Yields what a reader of the table must know."""
  tuned, seeds = content['tuned_metric'], content['seeds']
  which = {
    description.BEST: 'checkpoint that it keeps as its best',
    description.LAST: 'last checkpoint',
  }[content['checkpoint']]
  direction = 'highest' if content['tuned_higher_is_better'] else 'lowest'
  yield (
    f'The learning rate of each arm has the {direction} {tuned} on the '
    f'validation data with seed {seeds[0]}. Of each run the {which} counts.'
  )
  better = 'higher' if content['higher_is_better'] else 'lower'
  yield f'{content["metric"]}: {better} is better.'
  if len(seeds) == 1:
    yield 'There is one seed, so there are neither spread nor intervals.'
  elif content['baseline'] is not None:
    yield (
      "Differences are paired by seed; the interval is that of Student's t."
    )
  for arm in content['arms']:
    yield from _notes_of(arm, content)
  if content['runs_left']:
    yield f'The sweep is not complete: {content["runs_left"]} runs are left.'


def _notes_of(arm, content) -> Iterator[str]:
  """Yields the notes of an arm."""
  name, grid = arm['name'], arm['learning_rates']
  failed = [
    cell
    for cell in content['cells']
    if cell['arm'] == name and cell['state'] == results_lib.FAILED
  ]
  if arm['at_edge']:
    yield (
      f'{name}: the best learning rate is at an edge of its grid; a wider grid '
      'may have a better one.'
    )
  yield from _notes_of_seeds(arm, content)
  if len(grid) == 1:
    yield f'{name}: the grid has one learning rate, so it is not tuned.'
  for cell in failed:
    lines = cell['error'].splitlines()
    yield f'{cell["folder"]} failed: {lines[0]}'
  over = [c for c in content['cells'] if c['arm'] == name]
  if arm['best_learning_rate'] is None and all(
    _is_over(cell['state']) for cell in over
  ):
    yield (
      f'{name}: no learning rate is chosen, since runs of its grid failed or '
      f'gave no value of {content["tuned_metric"]}.'
    )


def _notes_of_seeds(arm, content) -> Iterator[str]:
  """Yields what an arm lacks of a comparison over all seeds."""
  without = [
    cell
    for cell in content['cells']
    if cell['arm'] == arm['name']
    and cell['learning_rate'] == arm['best_learning_rate']
    and cell['compared'] is None
  ]
  number, parts = len(content['seeds']), []
  if without:
    reasons = {results_lib.DONE: 'undefined', results_lib.FAILED: 'failed'}
    why = {reasons.get(cell['state'], 'not done yet') for cell in without}
    parts.append(
      f'{len(without)} of {number} seeds have no value '
      f'({", ".join(sorted(why))})'
    )
    if arm['values']:
      parts.append('its mean is of the others')
  difference = arm['difference']
  if difference and difference['pairs'] < number:
    parts.append(f'its difference is of {difference["pairs"]} pairs')
  if parts:
    yield f'{arm["name"]}: {"; ".join(parts)}.'


def _is_over(state: str) -> bool:
  return state in (results_lib.DONE, results_lib.FAILED)
