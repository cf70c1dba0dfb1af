import math

import numpy as np
import pytest

from perlhf_jax.objectives import ensembles

SCORES = np.array([[1.0, 2.0, -4.0], [3.0, 2.0, 0.5]], np.float32)


@pytest.mark.parametrize('penalty', [0.0, 1.0, 2.5])
def test_combined_scores_match_loops(penalty):
  actual = ensembles.combine(SCORES, penalty)
  for i, column in enumerate(SCORES.T.tolist()):
    mean = sum(column) / len(column)
    variance = sum((x - mean) ** 2 for x in column) / len(column)
    assert actual['mean'][i] == pytest.approx(mean)
    assert actual['min'][i] == min(column)
    lower = mean - penalty * math.sqrt(variance)
    assert actual['lower_bound'][i] == pytest.approx(lower)
    assert ensembles.spread(SCORES)[i] == pytest.approx(math.sqrt(variance))


def test_one_model_is_its_own_ensemble():
  actual = ensembles.combine(SCORES[:1], 3.0)
  for combined in actual.values():
    np.testing.assert_array_equal(combined, SCORES[0])


def test_what_is_disputed():
  decisions = np.array([[1, 0, 2, 0], [1, 1, 2, 0], [1, 1, 2, 3]])
  assert ensembles.disputed(decisions).tolist() == [0, 1, 0, 1]
