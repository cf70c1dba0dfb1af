"""Curves of runs: metrics by step, and the reward by the KL it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from perlhf_jax.report import drawing
from perlhf_jax.report import page
from perlhf_jax.report import run_files
from perlhf_jax.report import values
from perlhf_jax.training import metric_writer

# Bounds of a page.
MAX_POINTS = 300
MAX_CURVES = 30
_NO_METRICS = frozenset({'step', 'split'})
_SECOND = ('entropy', 'kl_k3', 'objective', 'truncated')
_HOW = 'Thin lines are training, lines with dots are validation.'
_THINNED = 'Each point is the mean of several consecutive records.'

Points = tuple[list[float], list[float]]


def thinned(x: Sequence[float], y: Sequence[float]) -> Points:
  """Averages consecutive points, so that at most `MAX_POINTS` are left."""
  size = -(-len(x) // MAX_POINTS) or 1
  parts = [slice(at, at + size) for at in range(0, len(x), size)]
  return _means(x, parts), _means(y, parts)


def _means(column, parts) -> list[float]:
  return [sum(column[part]) / len(column[part]) for part in parts]


def points(
  records: Sequence[Mapping[str, Any]], split: str, x: str, y: str
) -> Points:
  """Returns two metrics of the records that have both as numbers."""
  found = [
    (values.number(each.get(x)), values.number(each.get(y)))
    for each in records
    if each.get('split') == split
  ]
  whole = [pair for pair in found if None not in pair]
  return [x for x, _ in whole], [y for _, y in whole]


def by_step(runs: Sequence[run_files.Run]) -> list[page.Block]:
  """Draws each metric of the records by step, all runs in one plot.

  Args:
    runs: runs of one kind.
  """
  names = _in_order(runs)
  figures = [_curve(name, runs) for name in names[:MAX_CURVES]]
  if not figures:
    return []
  blocks: list[page.Block] = [page.Text(_HOW), page.Figures(figures)]
  if len(names) > MAX_CURVES:
    left_out = values.shortened(', '.join(names[MAX_CURVES:]), 400)
    blocks.append(page.Text(f'Not drawn: {left_out}.'))
  return blocks


def _in_order(runs: Sequence[run_files.Run]) -> list[str]:
  """Returns the metrics with a number in any record, in the order to show."""
  found: dict[str, float] = {}
  for run in runs:
    for record in run.records:
      for name, value in record.items():
        if name not in found and values.number(value) is not None:
          found[name] = 0.0
  second = {name: 0.0 for name in _SECOND if name in found}
  leading = {n: 0.0 for n in metric_writer.LEADING if n in found}
  ordered = [*({**leading, **second, **found})]
  timing = [name for name in metric_writer.TIMING if name in found]
  return [n for n in ordered if n not in {*_NO_METRICS, *timing}] + timing


def _curve(name: str, runs: Sequence[run_files.Run]) -> page.Figure:
  series, is_thinned = [], False
  for color, run in enumerate(runs):
    label = run.name if len(runs) > 1 else ''
    for split, look in (('train', 'thin'), ('eval', 'marked')):
      x, y = points(run.records, split, 'step', name)
      if not x:
        continue
      is_thinned |= len(x) > MAX_POINTS
      x, y = thinned(x, y)
      # A lone point makes no line.
      look = 'marked' if len(x) == 1 else look
      series.append(drawing.Series(x, y, label, color, look))
      label = ''
  return drawing.chart(
    values.label(name),
    series,
    x_label='step',
    y_label=values.label(name),
    caption=_THINNED * is_thinned,
  )


def reward_by_kl(runs: Sequence[run_files.Run]) -> list[page.Block]:
  """Draws what a policy gained by the KL it cost, by score and by the judge."""
  figures = []
  for name in ('score', 'judge_score'):
    series = []
    for color, run in enumerate(runs):
      label = run.name if len(runs) > 1 else ''
      for split, look in (('train', 'points'), ('eval', 'marked')):
        x, y = thinned(*points(run.records, split, 'kl_k1', name))
        if x:
          series.append(drawing.Series(x, y, label, color, look))
          label = ''
    if series:
      figures.append(
        drawing.chart(
          f'{values.label(name)} against KL',
          series,
          x_label=values.label('kl_k1'),
          y_label=values.label(name),
          caption='Connected dots are validation, in the order of training; '
          'small dots are training.',
        )
      )
  for name in ('score', 'judge_score'):
    found = [
      _best_of(run, name, run.name if len(runs) > 1 else '', color)
      for color, run in enumerate(runs)
    ]
    series = [each for each in found if each is not None]
    if series:
      figures.append(
        drawing.chart(
          f'{values.label(name)} of the best of n samples',
          series,
          x_label='KL of best-of-n (nats)',
          y_label=values.label(name),
          caption='The score chooses the best. Bars are 95% intervals.',
        )
      )
  return [page.Figures(figures)] if figures else []


def _best_of(
  run: run_files.Run, name: str, label: str, color: int
) -> drawing.Series | None:
  curve = run.evaluation.get('best_of')
  if not isinstance(curve, dict):
    return None
  columns = [
    values.numbers(curve.get(key))[:MAX_POINTS]
    for key in ('kl', name, f'{name}_standard_error')
  ]
  return drawing.with_bars(columns, label, color)
