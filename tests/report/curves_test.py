import json
import math

from etils import epath
import numpy as np
import pytest
import report_pages

from perlhf_jax.objectives import best_of
from perlhf_jax.report import curves
from perlhf_jax.report import drawing
from perlhf_jax.report import run_files


@pytest.mark.parametrize('count', [1, 299, 300, 301, 1000, 12_345])
def test_thinned_curves_are_means_of_consecutive_points(count):
  x = [float(i) for i in range(count)]
  y = [float(i * i % 97) for i in range(count)]
  few_x, few_y = curves.thinned(x, y)
  assert len(few_x) == len(few_y) <= curves.MAX_POINTS
  size = 1
  while count > size * curves.MAX_POINTS:
    size += 1
  at = 0
  for mean_x, mean_y in zip(few_x, few_y, strict=True):
    assert mean_x == pytest.approx(
      sum(x[at : at + size]) / len(x[at : at + size])
    )
    assert mean_y == pytest.approx(
      sum(y[at : at + size]) / len(y[at : at + size])
    )
    at += size
  assert at >= count


def test_no_points():
  assert curves.thinned([], []) == ([], [])


def test_points_need_both_metrics():
  records = [
    {'step': 1, 'split': 'train', 'kl_k1': 0.5, 'score': 2},
    {'step': 1, 'split': 'eval', 'kl_k1': 9, 'score': 9},
    {'step': 2, 'split': 'train', 'kl_k1': None, 'score': 3},
    {'step': 3, 'split': 'train', 'score': 4},
    {'step': 4, 'split': 'train', 'kl_k1': 'much', 'score': 5},
    {'step': 5, 'split': 'train', 'kl_k1': 1.5, 'score': -6.0},
  ]
  found = curves.points(records, 'train', 'kl_k1', 'score')
  assert found == ([0.5, 1.5], [2.0, -6.0])


@pytest.mark.parametrize('judged', [True, False])
def test_the_best_of_n_by_score_and_by_judge(tmp_path, monkeypatch, judged):
  rng = np.random.default_rng(0)
  columns = {name: rng.normal(size=(9, 6)) for name in ('score', 'judge_score')}
  if not judged:
    del columns['judge_score']
  curve = best_of.curve(
    columns['score'], {**columns, 'response_length': np.ones((9, 6))}
  )
  report_pages.write(tmp_path, eval__json={'best_of': curve, 'step': 1})
  evaluation = json.loads((tmp_path / 'eval.json').read_text())['best_of']
  drawn, chart = {}, drawing.chart

  def record(title, series, **labels):
    drawn[title] = series
    return chart(title, series, **labels)

  monkeypatch.setattr(drawing, 'chart', record)
  curves.reward_by_kl([run_files.read(epath.Path(tmp_path))])
  titles = {
    'score (reward) of the best of n samples': 'score',
    "judge's score of the best of n samples": 'judge_score',
  }
  assert set(drawn) == {t for t, name in titles.items() if name in columns}
  for title, (series,) in drawn.items():
    name = titles[title]
    assert series.x == evaluation['kl']
    assert series.y == evaluation[name]
    np.testing.assert_allclose(
      series.errors, 1.96 * np.array(evaluation[f'{name}_standard_error'])
    )


def test_a_standard_error_that_tells_nothing_gives_no_bar():
  columns = [1.0, 2, 3, 4, 5], [0.5, 1, None, 0, 1], [0.25, None, 1, 0.0, 0.5]
  series = drawing.with_bars(columns, 'rm', 2)
  assert series.x == [1, 2, 4, 5]
  assert series.y == [0.5, 1, 0, 1]
  assert series.errors == pytest.approx(
    [0.49, math.nan, math.nan, 0.98], nan_ok=True
  )
  figure = drawing.chart('bars', [series], x_label='x', y_label='y')
  assert 'nan' not in figure.svg.lower()
  assert drawing.with_bars([[], [], []], 'rm', 2) is None
