"""Where reward models are right, and how sure they are: plots of eval.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from perlhf_jax.report import drawing
from perlhf_jax.report import page
from perlhf_jax.report import run_files
from perlhf_jax.report import values

# Name in eval.json's `bins`: title, horizontal axis, vertical axis.
_PLOTS: Mapping[str, tuple[str, str, str]] = {
  'reliability': ('calibration', 'predicted probability', 'observed share'),
  'score_difference': (
    'accuracy by confidence',
    '|difference of scores|',
    'pairwise accuracy',
  ),
  'length_difference': (
    'accuracy by length',
    'tokens: chosen minus rejected',
    'pairwise accuracy',
  ),
  'margin': (
    'accuracy by margin of the data',
    'margin of the pair',
    'pairwise accuracy',
  ),
}
_BARS = (
  'Bars are 95% intervals of the share in a bin. A bin of one example, or of '
  'equal outcomes, has none.'
)
_MOST_BINS = 100


def plots(runs: Sequence[run_files.Run]) -> list[page.Block]:
  """Draws accuracy over bins and calibration, all runs in one plot.

  Args:
    runs: reward models.
  """
  figures = []
  for name, (title, x_label, y_label) in _PLOTS.items():
    found = [
      _series(run, name, color, run.name if len(runs) > 1 else '')
      for color, run in enumerate(runs)
    ]
    series = [each for each in found if each is not None]
    if not series:
      continue
    caption = _BARS
    if name == 'reliability':
      ends = _ends(series)
      series.append(drawing.Series(ends, ends, '', 5, 'dashed'))
      caption += ' A calibrated model follows the dashed line.'
    figures.append(
      drawing.chart(
        title, series, x_label=x_label, y_label=y_label, caption=caption
      )
    )
  return [page.Figures(figures)] if figures else []


def _ends(series: Sequence[drawing.Series]) -> list[float]:
  """Returns where the diagonal begins and ends: at 0 or 1/2, and at 1."""
  least = min(min(each.x) for each in series)
  return [0.5 if least >= 0.5 else 0.0, 1.0]


def _series(
  run: run_files.Run, name: str, color: int, label: str
) -> drawing.Series | None:
  bins: Any = run.evaluation.get('bins')
  found = bins.get(name) if isinstance(bins, dict) else None
  if not isinstance(found, dict):
    return None
  columns = [
    values.numbers(found.get(key))[:_MOST_BINS]
    for key in ('value', 'outcome', 'standard_error')
  ]
  return drawing.with_bars(columns, label, color)
