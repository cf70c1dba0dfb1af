import itertools
import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from perlhf_jax.objectives import bins
from perlhf_jax.objectives import metrics
from perlhf_jax.objectives import pair_metrics

# Few distinct scores and lengths, so that ties are common.
SCORE = st.sampled_from([-40.0, -1.5, -0.5, 0.0, 0.25, 0.5, 2.0, 40.0])
PAIRS = st.lists(
  st.tuples(SCORE, SCORE, st.integers(1, 4), st.integers(1, 4)),
  min_size=1,
  max_size=12,
)


def _columns(pairs):
  columns = zip(*pairs, strict=True)
  dtypes = np.float32, np.float32, np.int32, np.int32
  return [
    np.array(column, dtype)
    for column, dtype in zip(columns, dtypes, strict=True)
  ]


def _mean(values):
  values = list(values)
  return sum(values) / len(values) if values else math.nan


def _standard_error(values):
  values = list(values)
  if len(values) < 2:
    return math.nan
  variance = sum((x - _mean(values)) ** 2 for x in values) / (len(values) - 1)
  return math.sqrt(variance / len(values))


def _win(a, b):
  return 1.0 if a > b else 0.5 if a == b else 0.0


def _confidence(a, b):
  """The probability that the better of two scores is the better response."""
  return 1 / (1 + math.exp(-abs(float(a) - float(b))))


def _assert_same(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


@hypothesis.given(PAIRS)
def test_shares_of_the_longer_response_match_loops(pairs):
  actual = pair_metrics.longer_shares(*_columns(pairs))
  differing = [pair for pair in pairs if pair[2] != pair[3]]
  _assert_same(
    actual['longer_chosen'], _mean(m > n for _, _, m, n in differing)
  )
  _assert_same(
    actual['longer_scored_higher'],
    _mean(_win(a, b) if m > n else _win(b, a) for a, b, m, n in differing),
  )


@hypothesis.given(PAIRS, st.sampled_from([1, 2, 10]))
def test_calibration_error_matches_loops(pairs, num_bins):
  chosen, rejected, _, _ = _columns(pairs)
  rows = [(_confidence(a, b), _win(a, b)) for a, b, _, _ in pairs]
  expected = 0.0
  for k in range(num_bins):
    low, high = (0.5 + i / (2 * num_bins) for i in (k, k + 1))
    last = k == num_bins - 1
    in_bin = [r for r in rows if low <= r[0] < high or (last and r[0] == 1)]
    if in_bin:
      gap = _mean(c for c, _ in in_bin) - _mean(w for _, w in in_bin)
      expected += abs(gap) * len(in_bin) / len(rows)
  _assert_same(
    pair_metrics.calibration_error(chosen, rejected, num_bins), expected
  )


@hypothesis.given(PAIRS)
def test_bins_match_loops(pairs):
  columns = _columns(pairs)
  margins = np.float32([length for _, _, length, _ in pairs])
  actual = pair_metrics.accuracy_bins(*columns, margins)
  values = {
    'score_difference': [abs(a - b) for a, b, _, _ in pairs],
    'length_difference': [m - n for _, _, m, n in pairs],
    'margin': margins.tolist(),
    'reliability': [_confidence(a, b) for a, b, _, _ in pairs],
  }
  if len(set(margins.tolist())) == 1:
    del values['margin']
  assert actual.keys() == values.keys()
  for name, numbers in values.items():
    found = actual[name]
    edges = found['edges']
    assert len(edges) == len(found['examples']) + 1 <= 11
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
      is_last = k == len(edges) - 2
      rows = [
        i
        for i, x in enumerate(numbers)
        if low <= x < high or (is_last and x == high)
      ]
      credit = [_win(*pairs[i][:2]) for i in rows]
      assert found['examples'][k] == len(rows)
      _assert_same(found['value'][k], _mean(numbers[i] for i in rows))
      _assert_same(found['outcome'][k], _mean(credit))
      _assert_same(found['standard_error'][k], _standard_error(credit))
    assert sum(found['examples']) == len(pairs)
    if name != 'reliability':
      assert all(found['examples'])


@hypothesis.given(st.lists(SCORE, min_size=1, max_size=40), st.integers(1, 6))
def test_quantiles_hold_about_equally_many(values, num_bins):
  edges = bins.quantile_edges(np.float32(values), num_bins)
  assert edges[0] == min(values) and edges[-1] == max(values)
  assert len(edges) <= num_bins + 1 and set(edges) <= set(values)
  examples = bins.average(np.float32(values), np.float32(values), edges)
  most = max(values.count(value) for value in values)
  assert (
    max(examples['examples']) <= math.ceil(len(values) / num_bins) + most - 1
  )


def test_the_error_is_the_distance_from_the_diagonal():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=300).astype(np.float32)
  labels = (rng.random(300) < 0.4).astype(np.float32)
  probabilities = 1 / (1 + np.exp(-scores.astype(np.float64)))
  found = {
    name: np.array(column)
    for name, column in bins.reliability(probabilities, labels).items()
  }
  distance = np.abs(found['value'] - found['outcome'])
  filled = found['examples'] > 0
  _assert_same(
    metrics.expected_calibration_error(scores, labels),
    distance[filled] @ found['examples'][filled] / 300,
  )


def test_scores_that_are_log_odds_are_calibrated():
  # Of 4 pairs with confidence 3/4, 3 are right.
  log_odds = np.float32(np.log(3))
  chosen, rejected = np.float32([log_odds] * 3 + [0]), np.zeros(4, np.float32)
  rejected[3] = log_odds
  error = pair_metrics.calibration_error(chosen, rejected)
  assert error == pytest.approx(0, abs=1e-7)
  assert pair_metrics.calibration_error(10 * chosen, 10 * rejected) > 0.2


def test_a_nan_score_is_not_hidden():
  scores, lengths = np.float32([1, math.nan]), np.int32([1, 2])
  zeros = np.zeros(2, np.float32)
  assert math.isnan(pair_metrics.calibration_error(scores, zeros))
  shares = pair_metrics.longer_shares(scores, zeros, lengths, lengths[::-1])
  assert math.isnan(shares['longer_scored_higher'])
  assert shares['longer_chosen'] == 0.5


def test_standard_error_counts_what_the_mask_leaves():
  values = np.float32([1, 0, 1, 9])
  mask = np.array([True, True, True, False])
  _assert_same(metrics.standard_error(values, mask), 1 / 3)
  assert math.isnan(metrics.standard_error(values[:1]))


def test_two_values_make_two_bins():
  values = np.float32([1, 3, 1, 1, 3])
  found = bins.average(
    values, np.float32(values == 3), bins.quantile_edges(values, 5)
  )
  assert found['edges'] == [1, 3, 3]
  assert (found['examples'], found['outcome']) == ([3, 2], [0, 1])
