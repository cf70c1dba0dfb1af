"""Tables and plots of a sweep: arms compared, rates tuned, the paper beside."""

from collections.abc import Sequence

from perlhf_jax.report import drawing
from perlhf_jax.report import page
from perlhf_jax.report import paper
from perlhf_jax.report import sweep_file
from perlhf_jax.report import values

# Bounds of a page.
MAX_ARMS = 60
MAX_ROWS = 300
_MAX_FIGURES = 12
# What `sizes` shows.
_SIZES = (
  'trainable_fraction',
  'seconds_per_step',
  'examples_per_second',
  'step_memory_bytes',
  'kl_k1',
)


def comparison(
  sweep: sweep_file.Sweep, arms: Sequence[sweep_file.Arm]
) -> list[page.Block]:
  """Compares arms with the baseline, each at its best learning rate.

  Args:
    sweep: the sweep.
    arms: those to show.
  """
  metric = values.label(sweep.metric)
  columns = ['arm', 'learning rate', metric, 'std over seeds', 'seeds']
  note = 'Each arm is at its own best learning rate.'
  if sweep.baseline is not None:
    points = ' (points)' if values.is_share(sweep.metric) else ''
    columns += [f'difference{points}', f'{sweep.confidence:.0%} interval']
    note = (
      f'Differences are from {values.shortened(sweep.baseline, 60)}, seed by '
      'seed, each arm at its own best learning rate.'
    )
  rows = [
    [
      values.shortened(arm.name, 60),
      _learning_rate(arm),
      values.shown(sweep.metric, arm.mean),
      values.shown(sweep.metric, arm.std),
      str(sum(x is not None for x in arm.values.values())),
      *_difference(arm, sweep.metric),
    ][: len(columns)]
    for arm in arms
  ]
  blocks: list[page.Block] = []
  figures = _figures(sweep, arms, metric)
  if figures:
    blocks.append(page.Figures(figures))
  if rows:
    blocks.append(page.Table(f'{metric} by arm', columns, rows, note))
  return blocks


def _figures(sweep, arms, metric) -> list[page.Figure]:
  means = [
    drawing.Interval(
      arm.name,
      arm.mean,
      points=[x for x in arm.values.values() if values.number(x) is not None],
    )
    for arm in arms
    if values.number(arm.mean) is not None
  ]
  differences = [
    drawing.Interval(
      arm.name, arm.difference.mean, arm.difference.low, arm.difference.high
    )
    for arm in arms
    if arm.difference is not None
    and None not in map(values.number, _ends(arm.difference))
  ]
  figures = []
  if means:
    figures.append(
      drawing.intervals(
        f'{metric} by arm',
        means,
        x_label=metric,
        caption='Dots are means over seeds, ticks are seeds.',
      )
    )
  if differences:
    baseline = values.shortened(sweep.baseline, 40)
    figures.append(
      drawing.intervals(
        f'difference from {baseline}',
        differences,
        x_label=f'difference of {metric}',
        caption=f'Bars are {sweep.confidence:.0%} intervals of the paired '
        'difference over seeds.',
        zero=0.0,
      )
    )
  return figures


def _ends(difference: sweep_file.Difference) -> list[float]:
  found = difference.mean, difference.low, difference.high
  return [each for each in found if each is not None]


def _learning_rate(arm) -> str:
  if arm.best_learning_rate is None:
    return values.NONE
  return f'{arm.best_learning_rate:g}{" (edge)" if arm.at_edge else ""}'


def _difference(arm, metric) -> list[str]:
  found = arm.difference
  if found is None:
    return [values.NONE, values.NONE]
  mean = _signed(metric, found.mean)
  if found.low is None or found.high is None:
    return [mean, f'{values.NONE} ({found.pairs} pairs)']
  low, high = _signed(metric, found.low), _signed(metric, found.high)
  return [mean, f'{low} to {high}']


def _signed(metric: str, value: float) -> str:
  """Returns a difference as text: of shares in percentage points."""
  if values.is_share(metric):
    return f'{100 * value:+.1f}'
  return f'{value:+.4g}'


def tuning(
  sweep: sweep_file.Sweep, arms: Sequence[sweep_file.Arm]
) -> list[page.Block]:
  """Shows the tuned metric by learning rate, for each arm.

  Args:
    sweep: the sweep.
    arms: those to show.
  """
  metric, figures = values.label(sweep.tuned_metric), []
  rows = []
  for arm in arms:
    found = [
      (
        values.number(each.get('learning_rate')),
        values.number(each.get('value')),
      )
      for each in arm.tuning
    ]
    found = sorted(pair for pair in found if None not in pair and pair[0] > 0)
    for rate, value in found:
      is_best = rate == arm.best_learning_rate
      rows.append(
        [
          values.shortened(arm.name, 60),
          f'{rate:g}',
          values.shown(sweep.tuned_metric, value),
          'chosen' if is_best else '',
        ]
      )
    if found:
      x, y = ([pair[i] for pair in found] for i in range(2))
      series = [drawing.Series(x, y)]
      if arm.best_learning_rate in x:
        at = x.index(arm.best_learning_rate)
        chosen = drawing.Series([x[at]], [y[at]], 'chosen', 1)
        series.append(chosen)
      figures.append(
        drawing.chart(
          values.shortened(arm.name, 60),
          series,
          x_label='learning rate',
          y_label=metric,
          log_x=True,
        )
      )
  if not figures:
    return []
  columns = ['arm', 'learning rate', metric, '']
  return [
    page.Figures(figures[:_MAX_FIGURES]),
    page.Table('Tuning on validation data', columns, rows[:MAX_ROWS]),
  ]


def sizes(arms: Sequence[sweep_file.Arm]) -> list[page.Block]:
  """Shows what else a sweep recorded of arms: size, speed, memory and KL."""
  names = [
    name
    for name in _SIZES
    if any(values.number(arm.extra.get(name)) is not None for arm in arms)
  ]
  if not names:
    return []
  rows = [
    [
      values.shortened(arm.name, 60),
      *(values.shown(name, arm.extra.get(name)) for name in names),
    ]
    for arm in arms
  ]
  columns = ['arm', *map(values.label, names)]
  return [page.Table('Size, speed, memory and KL by arm', columns, rows)]


def beside_the_paper(
  sweep: sweep_file.Sweep, arms: Sequence[sweep_file.Arm]
) -> list[page.Block]:
  """Shows the paper's table for the command, and the arms at its ranks.

  Args:
    sweep: the sweep.
    arms: those to show.
  """
  table = paper.OF_COMMAND.get(sweep.command)
  if table is None:
    return []
  blocks: list[page.Block] = []
  ranked = [
    arm
    for arm in arms
    if arm.rank in table.by_rank and arm.difference is not None
  ]
  if ranked:
    points = ' (points)' if values.is_share(sweep.metric) else ''
    columns = [
      'rank',
      'arm',
      f'here{points}',
      f'{sweep.confidence:.0%} interval',
    ]
    rows = [
      [
        str(arm.rank),
        values.shortened(arm.name, 60),
        *_difference(arm, sweep.metric),
        *_gains(table.by_rank[arm.rank], table.full),
      ]
      for arm in sorted(ranked, key=lambda each: each.rank)
    ]
    blocks.append(
      page.Table(
        'LoRA minus full tuning, by rank: here, and in the paper',
        [*columns, *table.data_sets],
        rows,
        f'Here: {values.label(sweep.metric)}, minus '
        f'{values.shortened(sweep.baseline, 60)}. Paper: percentage points.',
      )
    )
  lines: list[Sequence[str]] = [['full', *_percent(table.full)]]
  for rank, row in table.by_rank.items():
    lines.append([f'LoRA, rank {rank}', *_percent(row)])
  if table.start is not None:
    lines.append(['SFT', *_percent(table.start)])
  note = (
    f'{paper.SOURCE}; {table.measure}, in percent. One run each: the paper '
    'gives no intervals. Models and data are others than here.'
  )
  columns = ['tuning', *table.data_sets]
  return [*blocks, page.Table(table.title, columns, lines, note)]


def _gains(row: Sequence[float], full: Sequence[float]) -> list[str]:
  """Returns the paper's differences from full tuning."""
  pairs = zip(row, full, strict=True)
  return [f'{lora - all_:+.1f}' for lora, all_ in pairs]


def _percent(row: Sequence[float]) -> list[str]:
  return [f'{each:.1f}' for each in row]
