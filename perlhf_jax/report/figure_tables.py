"""Tables of figures of runs: results, speed and memory, environment."""

from collections.abc import Mapping, Sequence
from typing import Any

from perlhf_jax.checkpoints import run_changes
from perlhf_jax.report import page
from perlhf_jax.report import run_files
from perlhf_jax.report import values

# Bounds of a page.
MAX_ROWS = 120
MAX_CONFIG = 200_000
# Keys of eval.json with figures that have a place of their own, or settings.
_ELSEWHERE = frozenset({'bins', 'samples', 'best_of', 'step'})
_COSTS = (
  'steps',
  'trainable_fraction',
  'seconds_per_step',
  'examples_per_second',
  'step_memory_bytes',
)


def results(runs: Sequence[run_files.Run]) -> list[page.Block]:
  """Returns the numbers of eval.json, a column for each run."""
  found = {
    run.name: {
      name: value
      for name, value in values.flat(run.evaluation)
      if name.partition('.')[0] not in _ELSEWHERE
    }
    for run in runs
    if run.evaluation
  }
  evaluated = '; '.join(
    f'{run.name}: {_evaluated_on(run.evaluation)}'
    for run in runs
    if run.evaluation
  )
  return _table('Evaluation (eval.json)', found, note=evaluated)


def _evaluated_on(evaluation: Mapping[str, Any]) -> str:
  where = evaluation.get('task') or evaluation.get('input') or 'unknown data'
  where = values.shortened(where, 100)
  if 'split' in evaluation:
    where += f'/{values.shortened(evaluation["split"], 40)}'
  examples = values.shown('examples', evaluation.get('examples'))
  return f'{where}, {examples} examples{at_step(evaluation)}'


def at_step(found: Mapping[str, Any]) -> str:
  """Returns `, step N` for figures of a step; nothing for others."""
  step = found.get('step')
  is_known = values.number(step) is not None
  return f', step {values.shown("step", step)}' if is_known else ''


def costs(runs: Sequence[run_files.Run]) -> list[page.Block]:
  """Returns speed, memory and trained share, a column for each run."""
  found = {
    run.name: {
      name: run.summary[name] for name in _COSTS if name in run.summary
    }
    for run in runs
    if run.summary
  }
  return _table('Memory and time (summary.json)', found)


def environment(runs: Sequence[run_files.Run]) -> list[page.Block]:
  """Returns versions and devices, as the runs recorded them."""
  names: dict[str, None] = {}
  columns = []
  for run in runs:
    column = {}
    if run.metadata is not None:
      column.update(run.metadata.versions)
    kind = run.summary.get('device_kind')
    if isinstance(kind, str):
      count = values.shown('devices', run.summary.get('devices'))
      column['devices'] = f'{count} x {kind}'
    columns.append(column)
    names |= dict.fromkeys(column)
  rows = [
    [
      values.shortened(name, 60),
      *(values.shortened(each.get(name, values.NONE), 80) for each in columns),
    ]
    for name in list(names)[:MAX_ROWS]
  ]
  if not rows:
    return []
  titles = ['', *(run.name for run in runs)]
  return [page.Table('Environment', titles, rows)]


def configuration(runs: Sequence[run_files.Run]) -> list[page.Block]:
  """Returns what the runs are of, and their config.gin."""
  blocks: list[page.Block] = []
  rows = [_description(run) for run in runs if run.metadata is not None]
  if rows:
    columns = ['run', 'objective', 'tuning', 'task', 'base', 'adapters']
    blocks.append(page.Table('Runs', columns, rows))
  for run in runs:
    if run.metadata is not None:
      for change in run_changes.recorded(run.metadata):
        text = f'{run.name} was changed: {change}'
        blocks.append(page.Text(values.shortened(text, 1000)))
    if run.config:
      text = values.shortened(run.config, MAX_CONFIG)
      title = f'{run.name}/config.gin' if len(runs) > 1 else 'config.gin'
      blocks.append(page.Listing(f'{title}, the configuration', text))
  return blocks


def _description(run: run_files.Run) -> list[str]:
  metadata = run.metadata
  base, lora = metadata.base, metadata.lora
  cells = [
    run.name,
    metadata.objective or values.NONE,
    metadata.tuning or values.NONE,
    metadata.task or values.NONE,
    values.NONE if base is None else base['path'],
    values.NONE if lora is None else lora.title,
  ]
  return [values.shortened(each, 200) for each in cells]


def _table(
  caption: str, found: Mapping[str, Mapping[str, Any]], note: str = ''
) -> list[page.Block]:
  """Returns a table with a column for each run; empty without rows."""
  names: dict[str, None] = {}
  for column in found.values():
    names |= dict.fromkeys(column)
  rows = [
    [
      values.label(name),
      *(values.shown(name, column.get(name)) for column in found.values()),
    ]
    for name in list(names)[:MAX_ROWS]
  ]
  if not rows:
    return []
  if len(names) > MAX_ROWS:
    note += f' {len(names) - MAX_ROWS:,} more figures are left out.'
  return [page.Table(caption, ['', *found], rows, note)]
