import math

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.objectives import metrics

# Few distinct scores, so that ties are common.
SCORE = st.sampled_from([-3.0, -1.5, -0.5, 0.0, 0.25, 0.5, 2.0])
EXAMPLES = st.lists(
  st.tuples(SCORE, SCORE, st.integers(0, 1), st.integers(1, 4), st.booleans()),
  min_size=0,
  max_size=12,
)


def _columns(examples):
  columns = list(zip(*examples, strict=True)) or [()] * 5
  dtypes = np.float32, np.float32, np.float32, np.int32, bool
  return [
    np.array(column, dtype)
    for column, dtype in zip(columns, dtypes, strict=True)
  ]


def _mean(values):
  values = list(values)
  return sum(values) / len(values) if values else math.nan


def _win(a, b):
  return 1.0 if a > b else 0.5 if a == b else 0.0


def _assert_same(actual, expected):
  assert isinstance(actual, float)
  np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


@hypothesis.given(EXAMPLES)
def test_pairwise_metrics_match_loops(examples):
  chosen, rejected, _, lengths, mask = _columns(examples)
  other_lengths = lengths[::-1].copy()
  _assert_same(
    metrics.pairwise_accuracy(chosen, rejected, mask),
    _mean(
      _win(c, r) for c, r, m in zip(chosen, rejected, mask, strict=True) if m
    ),
  )
  by_length = metrics.pairwise_accuracy_by_length(
    chosen, rejected, lengths, other_lengths, mask
  )
  is_in_group = {
    'chosen_longer': lambda a, b: a > b,
    'chosen_shorter': lambda a, b: a < b,
    'equal_length': lambda a, b: a == b,
  }
  assert by_length.keys() == is_in_group.keys()
  for name, is_in in is_in_group.items():
    _assert_same(
      by_length[name],
      _mean(
        _win(c, r)
        for c, r, a, b, m in zip(
          chosen, rejected, lengths, other_lengths, mask, strict=True
        )
        if m and is_in(a, b)
      ),
    )


@hypothesis.given(EXAMPLES)
def test_pointwise_metrics_match_loops(examples):
  scores, _, labels, _, mask = _columns(examples)
  kept = [(s, p) for s, p, m in zip(scores, labels, mask, strict=True) if m]
  right = [((s > 0) == (p == 1), p) for s, p in kept]
  _assert_same(
    metrics.accuracy(scores, labels, mask), _mean(r for r, _ in right)
  )
  _assert_same(
    metrics.balanced_accuracy(scores, labels, mask),
    (_mean(r for r, p in right if p) + _mean(r for r, p in right if not p)) / 2,
  )
  _assert_same(
    metrics.roc_auc(scores, labels, mask),
    _mean(
      _win(good, bad)
      for good, is_good in kept
      for bad, is_good_too in kept
      if is_good and not is_good_too
    ),
  )


@hypothesis.given(EXAMPLES, st.sampled_from([1, 4, 10]))
def test_calibration_error_matches_loops(examples, num_bins):
  scores, _, labels, _, mask = _columns(examples)
  kept = [
    (1 / (1 + math.exp(-float(s))), float(p))
    for s, p, m in zip(scores, labels, mask, strict=True)
    if m
  ]
  expected = 0.0
  for k in range(num_bins):
    in_bin = [(q, p) for q, p in kept if k / num_bins <= q < (k + 1) / num_bins]
    if in_bin:
      gap = _mean(q for q, _ in in_bin) - _mean(p for _, p in in_bin)
      expected += len(in_bin) / len(kept) * abs(gap)
  _assert_same(
    metrics.expected_calibration_error(scores, labels, mask, num_bins),
    expected if kept else math.nan,
  )


def test_calibration_error_counts_certainty_in_the_last_bin():
  certain = np.array([1e4, -1e4], np.float32)
  right = np.array([1, 0], np.float32)
  assert metrics.expected_calibration_error(certain, right) == 0
  assert metrics.expected_calibration_error(certain, 1 - right) == 1


def _pearson(x, y):
  mean_x, mean_y = _mean(x), _mean(y)
  covariance = _mean(
    (a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)
  )
  variances = [
    _mean((v - m) ** 2 for v in vs) for vs, m in ((x, mean_x), (y, mean_y))
  ]
  return covariance / math.sqrt(variances[0] * variances[1])


def _rank(value, values):
  below = sum(v < value for v in values)
  equal = sum(v == value for v in values)
  return below + (equal + 1) / 2


@hypothesis.given(EXAMPLES)
def test_correlations_match_loops(examples):
  scores, _, _, lengths, mask = _columns(examples)
  x = [float(s) for s, m in zip(scores, mask, strict=True) if m]
  y = [float(n) for n, m in zip(lengths, mask, strict=True) if m]
  if len(set(x)) < 2 or len(set(y)) < 2:
    expected = math.nan, math.nan
  else:
    ranks = [[_rank(v, vs) for v in vs] for vs in (x, y)]
    expected = _pearson(x, y), _pearson(*ranks)
  actual = (
    metrics.pearson_correlation(scores, lengths, mask),
    metrics.spearman_correlation(scores, lengths, mask),
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def _example_set(seed=0, size=40):
  rng = np.random.default_rng(seed)
  scores = rng.normal(size=size).round(1).astype(np.float32)
  others = rng.normal(size=size).round(1).astype(np.float32)
  labels = rng.integers(0, 2, size).astype(np.float32)
  lengths = rng.integers(1, 9, size).astype(np.int32)
  return scores, others, labels, lengths


def _all_metrics(scores, others, labels, lengths, mask=None):
  return {
    'mean': metrics.mean(scores, mask),
    'pairwise': metrics.pairwise_accuracy(scores, others, mask),
    'accuracy': metrics.accuracy(scores, labels, mask),
    'balanced': metrics.balanced_accuracy(scores, labels, mask),
    'roc_auc': metrics.roc_auc(scores, labels, mask),
    'calibration': metrics.expected_calibration_error(scores, labels, mask),
    'pearson': metrics.pearson_correlation(scores, lengths, mask),
    'spearman': metrics.spearman_correlation(scores, lengths, mask),
    **metrics.pairwise_accuracy_by_length(
      scores, others, lengths, lengths[::-1], mask
    ),
  }


def test_padding_changes_nothing():
  columns = _example_set()
  expected = _all_metrics(*columns)
  padded = [np.pad(column, (0, 5), constant_values=7) for column in columns]
  lengths = padded[3]
  lengths[-5:] = 1
  mask = np.arange(45) < 40
  actual = _all_metrics(*padded, mask=mask)
  for name in expected.keys() - {
    'chosen_longer',
    'chosen_shorter',
    'equal_length',
  }:
    assert actual[name] == expected[name], name


def test_everything_masked_is_nan():
  values = _all_metrics(*_example_set(), mask=np.zeros(40, bool))
  assert all(math.isnan(value) for value in values.values()), values


def test_order_changes_nothing():
  scores, others, labels, lengths = _example_set()
  order = np.random.default_rng(1).permutation(40)
  for metric in (
    lambda i: metrics.pairwise_accuracy(scores[i], others[i]),
    lambda i: metrics.balanced_accuracy(scores[i], labels[i]),
    lambda i: metrics.roc_auc(scores[i], labels[i]),
    lambda i: metrics.spearman_correlation(scores[i], lengths[i]),
  ):
    _assert_same(metric(order), metric(np.arange(40)))


def test_ranking_metrics_ignore_increasing_maps():
  scores, others, labels, lengths = _example_set()
  for change in (
    lambda s: s + np.float32(4),
    lambda s: s * np.float32(8),
    lambda s: np.exp(s),
  ):
    assert metrics.roc_auc(change(scores), labels) == metrics.roc_auc(
      scores, labels
    )
    assert metrics.pairwise_accuracy(
      change(scores), change(others)
    ) == metrics.pairwise_accuracy(scores, others)
    assert metrics.spearman_correlation(
      change(scores), lengths
    ) == metrics.spearman_correlation(scores, lengths)


def test_reversed_scores_reverse_the_ranking_metrics():
  scores, others, labels, _ = _example_set()
  _assert_same(
    metrics.roc_auc(-scores, labels), 1 - metrics.roc_auc(scores, labels)
  )
  _assert_same(
    metrics.pairwise_accuracy(-scores, -others),
    1 - metrics.pairwise_accuracy(scores, others),
  )


def test_a_constant_score_is_worth_chance():
  _, _, labels, lengths = _example_set()
  constant = np.full(40, 0.1, np.float32)
  assert metrics.pairwise_accuracy(constant, constant) == 0.5
  assert metrics.roc_auc(constant, labels) == 0.5
  assert metrics.balanced_accuracy(constant, labels) == 0.5
  assert math.isnan(metrics.pearson_correlation(constant, lengths))
  assert math.isnan(metrics.spearman_correlation(constant, lengths))


@pytest.mark.parametrize('label', [0, 1])
def test_a_single_class_leaves_class_metrics_undefined(label):
  scores, _, _, _ = _example_set()
  labels = np.full(40, label, np.float32)
  assert math.isnan(metrics.roc_auc(scores, labels))
  assert math.isnan(metrics.balanced_accuracy(scores, labels))
  assert not math.isnan(metrics.accuracy(scores, labels))


def test_a_nan_score_is_not_hidden():
  scores, others, labels, lengths = _example_set()
  scores[3] = np.nan
  values = _all_metrics(scores, others, labels, lengths)
  for name in (
    'mean',
    'pairwise',
    'accuracy',
    'balanced',
    'roc_auc',
    'calibration',
    'pearson',
    'spearman',
  ):
    assert math.isnan(values[name]), name


def test_a_score_of_zero_calls_bad():
  zero = np.zeros(1, np.float32)
  assert metrics.accuracy(zero, np.zeros(1, np.float32)) == 1
  assert metrics.accuracy(zero, np.ones(1, np.float32)) == 0


def test_labels_above_one_half_are_good():
  scores = np.array([1.0, -1.0, 2.0, -2.0], np.float32)
  labels = np.array([0.5, 0.25, 0.75, 1.0], np.float32)
  assert metrics.accuracy(scores, labels) == 0.5
  # Of the good ones the third is right, of the bad ones the second.
  assert metrics.balanced_accuracy(scores, labels) == 0.5
  # Of the four pairs, the third response beats both bad ones, the last neither.
  assert metrics.roc_auc(scores, labels) == 0.5


def test_calibration_has_ten_bins_by_default():
  scores, _, labels, _ = _example_set()
  of_ten, of_nine, of_eleven = (
    metrics.expected_calibration_error(scores, labels, num_bins=count)
    for count in (10, 9, 11)
  )
  assert len({of_ten, of_nine, of_eleven}) == 3
  assert metrics.expected_calibration_error(scores, labels) == of_ten


def test_device_arrays_are_accepted():
  scores, others, labels, _ = _example_set()
  assert metrics.roc_auc(jnp.array(scores), labels) == metrics.roc_auc(
    scores, labels
  )
  assert metrics.pairwise_accuracy(
    jnp.array(scores), jnp.array(others)
  ) == metrics.pairwise_accuracy(scores, others)
