import itertools
import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from perlhf_jax.objectives import best_of

# Few distinct scores, so that ties are common.
SCORE = st.sampled_from([-3.0, -0.5, 0.0, 0.25, 2.0])
SCORES = st.lists(SCORE, min_size=2, max_size=6)


def _array(scores):
  return np.array(scores, np.float64)


@hypothesis.given(SCORES, st.data())
def test_credit_is_what_a_random_best_response_is_worth(scores, data):
  num_correct = data.draw(st.integers(1, len(scores) - 1))
  best = [i for i, score in enumerate(scores) if score == max(scores)]
  wanted = sum(i < num_correct for i in best) / len(best)
  assert best_of.credit(_array(scores), num_correct) == pytest.approx(wanted)
  assert best_of.is_tied(_array(scores), num_correct) == (0 < wanted < 1)


def _ties_by_hand(records):
  """The score of Ties as its authors describe it, prompt by prompt."""
  total = 0.0
  for reference, tied, num_correct in records:
    reference_gap = reference[0] - max(reference[1:])
    correct, incorrect = tied[:num_correct], tied[num_correct:]
    gap, spread = min(correct) - max(incorrect), max(correct) - min(correct)
    smaller = min(gap, reference_gap)
    if spread > 0:
      bonus = math.tanh(smaller / spread - 1)
    else:
      bonus = (smaller > 0) - (smaller < 0)
    total += (
      0.3 * all(c > i for c in correct for i in incorrect)
      + 0.3 * all(reference[0] > i for i in reference[1:])
      + 0.2 * (gap > spread)
      + 0.2 * (reference_gap > spread and gap > spread)
      + 0.01 * bonus
    )
  return total / len(records)


@hypothesis.given(st.lists(st.tuples(SCORES, SCORES), min_size=1), st.data())
def test_the_score_of_ties_matches_loops(records, data):
  records = [
    (*record, data.draw(st.integers(1, len(record[1]) - 1)))
    for record in records
  ]
  references = [best_of.margins(_array(r), 1) for r, _, _ in records]
  tied = [best_of.margins(_array(t), n) for _, t, n in records]
  result = best_of.ties_score(references, tied)
  assert result['score'] == pytest.approx(_ties_by_hand(records), abs=1e-12)
  alone = [_ties_by_hand([record]) for record in records]
  if len(records) > 1:
    wanted = np.std(alone, ddof=1) / math.sqrt(len(records))
    assert result['standard_error'] == pytest.approx(wanted, abs=1e-12)
  else:
    assert math.isnan(result['standard_error'])


def test_a_perfect_model_of_ties_has_its_bonus():
  sure = best_of.Margins(spread=0.0, gap=1.0)
  result = best_of.ties_score([sure, sure], [sure, sure])
  assert result['score'] == pytest.approx(1.01)
  equal = best_of.Margins(spread=0.0, gap=0.0)
  assert best_of.ties_score([equal], [equal])['score'] == 0


def test_a_nan_score_is_not_hidden():
  scores = _array([1, math.nan, 0])
  assert math.isnan(best_of.credit(scores, 1))
  assert not best_of.is_tied(scores, 1)
  margins = best_of.margins(scores, 2)
  sure = best_of.Margins(spread=0.0, gap=1.0)
  result = best_of.ties_score([sure], [margins])
  assert all(map(math.isnan, result.values()))
  one = _array([[1, math.nan], [1, 2]])
  expected = best_of.expected_best(one, one, 1)
  assert math.isnan(expected[0]) and expected[1] == 1.5


@hypothesis.given(
  st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=5), st.data()
)
def test_the_expected_best_is_the_mean_of_all_choices(samples, data):
  n = data.draw(st.integers(1, len(samples)))
  total = []
  for choice in itertools.combinations(samples, n):
    highest = max(score for score, _ in choice)
    tied = [judged for score, judged in choice if score == highest]
    total.append(sum(tied) / len(tied))
  scores, judged = (_array([column]) for column in zip(*samples, strict=True))
  (actual,) = best_of.expected_best(scores, judged, n)
  assert actual == pytest.approx(sum(total) / len(total), abs=1e-12)


@pytest.mark.parametrize('n', [1, 2, 5])
def test_the_divergence_of_best_of_n_is_that_of_its_distribution(n):
  # Of M equally likely responses with different scores, the k-th best-of-n is
  # (k/M)^n - ((k-1)/M)^n likely.
  responses = 20_000
  ranks = np.arange(responses + 1) / responses
  likely = np.diff(ranks**n)
  divergence = np.sum(likely * np.log(likely * responses))
  assert best_of.kl(n) == pytest.approx(divergence, abs=1e-3)


def test_a_curve_has_a_point_for_each_power_of_two_and_the_last():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(7, 6))
  gold = -scores
  curve = best_of.curve(scores, {'score': scores, 'judge_score': gold})
  assert curve['n'] == [1, 2, 4, 6]
  assert curve['kl'][0] == 0 and curve['kl'][3] == pytest.approx(
    math.log(6) - 5 / 6
  )
  assert curve['score'][0] == pytest.approx(scores.mean())
  assert curve['score'][-1] == pytest.approx(scores.max(axis=1).mean())
  np.testing.assert_allclose(curve['judge_score'], -np.array(curve['score']))
  error = scores.max(axis=1).std(ddof=1) / math.sqrt(7)
  assert curve['score_standard_error'][-1] == pytest.approx(error)
  assert curve.keys() == {
    *('n', 'kl', 'score', 'judge_score'),
    *('score_standard_error', 'judge_score_standard_error'),
  }
