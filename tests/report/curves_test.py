import pytest

from perlhf_jax.report import curves


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
