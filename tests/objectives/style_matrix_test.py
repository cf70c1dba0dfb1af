import math

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from perlhf_jax.objectives import style_matrix

SCORE = st.sampled_from([-3.0, -0.5, 0.0, 0.25, 2.0])


@hypothesis.given(
  st.tuples(st.integers(1, 5), st.integers(2, 4)).flatmap(
    lambda shape: st.tuples(
      *[hnp.arrays(np.float64, shape, elements=SCORE)] * 2
    )
  )
)
def test_accuracies_match_loops(scores):
  chosen, rejected = scores
  records, styles = chosen.shape
  matrix = [[0.0] * styles for _ in range(styles)]
  shares = []
  for record in range(records):
    groups = {'hard': [], 'normal': [], 'easy': []}
    for i in range(styles):
      for j in range(styles):
        win = chosen[record][i] > rejected[record][j]
        matrix[i][j] += win / records
        name = 'hard' if i < j else 'easy' if i > j else 'normal'
        groups[name].append(win)
    shares.append({name: sum(x) / len(x) for name, x in groups.items()})
    shares[-1]['score'] = sum(shares[-1].values()) / 3
  actual = style_matrix.accuracies(chosen, rejected)
  np.testing.assert_allclose(actual.pop('matrix'), matrix)
  for name in ('hard', 'normal', 'easy', 'score'):
    column = [share[name] for share in shares]
    assert actual.pop(name) == pytest.approx(sum(column) / records)
    error = actual.pop(f'{name}_standard_error')
    if records == 1:
      assert math.isnan(error)
    else:
      wanted = np.std(column, ddof=1) / math.sqrt(records)
      assert error == pytest.approx(wanted, abs=1e-12)
  assert not actual


def test_a_model_of_style_alone_is_right_where_it_is_easy():
  by_style = np.array([[0.0, 1.0, 2.0]] * 4)
  actual = style_matrix.accuracies(by_style, by_style)
  assert (actual['hard'], actual['normal'], actual['easy']) == (0, 0, 1)
  assert actual['matrix'] == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_domains_have_the_same_weight():
  few, many = np.ones((1, 2)), np.zeros((9, 2))
  domains = {
    'code': style_matrix.accuracies(few, -few),
    'math': style_matrix.accuracies(many, many),
  }
  assert style_matrix.average(domains) == dict.fromkeys(
    ('hard', 'normal', 'easy', 'score'), 0.5
  )


def test_a_nan_score_is_not_hidden():
  chosen = np.array([[1.0, math.nan]])
  actual = style_matrix.accuracies(chosen, np.zeros((1, 2)))
  assert actual['matrix'][0] == [1, 1]
  assert all(map(math.isnan, actual['matrix'][1]))
  assert actual['hard'] == 1 and math.isnan(actual['easy'])
