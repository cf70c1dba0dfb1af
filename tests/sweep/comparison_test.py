import numpy as np
import pytest
from scipy import stats

from perlhf_jax.sweep import comparison


def _drawn(seed, count):
  draw = np.random.default_rng(seed)
  return (
    {n: float(draw.normal(0.8, 0.1)) for n in range(count)},
    {n: float(draw.normal(0.7, 0.2)) for n in range(count)},
  )


@pytest.mark.parametrize('count', [2, 3, 7])
def test_interval_is_that_of_a_paired_t_test(count):
  values, baseline = _drawn(count, count)
  found = comparison.paired_difference(values, baseline)
  test = stats.ttest_rel([*values.values()], [*baseline.values()])
  low, high = test.confidence_interval(0.95)
  np.testing.assert_allclose(
    found,
    [np.mean([values[n] - baseline[n] for n in values]), low, high, count],
  )


def test_interval_by_hand():
  # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027.
  found = comparison.paired_difference({0: 2, 1: 4, 2: 6}, {0: 1, 1: 2, 2: 3})
  reach = 4.302653 / 3**0.5
  np.testing.assert_allclose(found[:3], [2, 2 - reach, 2 + reach], rtol=1e-6)


def test_only_seeds_of_both_are_pairs():
  found = comparison.paired_difference(
    {0: 1.0, 1: 5.0, 3: 9.0}, {1: 2.0, 3: 5.0, 4: 7.0}
  )
  assert (found.mean, found.pairs) == (3.5, 2)


def test_one_pair_has_no_interval():
  found = comparison.paired_difference({0: 1.0, 1: 2.0}, {1: 0.5})
  assert found == (1.5, None, None, 1)


def test_no_pair():
  assert comparison.paired_difference({0: 1.0}, {1: 1.0}) is None


def test_mean_and_deviation_are_those_of_a_sample():
  values = [1.0, 4.0, 4.0, 9.0]
  mean = sum(values) / 4
  squares = 0.0
  for value in values:
    squares += (value - mean) ** 2
  assert comparison.mean_of(values) == pytest.approx(mean)
  assert comparison.deviation_of(values) == pytest.approx((squares / 3) ** 0.5)
  assert comparison.deviation_of([1.0]) is None
  assert comparison.mean_of([]) is None
