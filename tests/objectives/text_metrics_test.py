from collections import Counter
import math
import re

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from perlhf_jax.objectives import text_metrics

# Few words, so that overlaps are common.
TEXT = st.lists(
  st.sampled_from(['a', 'B', 'b', 'tea', 'Tea!', '2', '—']), max_size=7
).map(' '.join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5)
# Few distinct scores, so that ties are common.
SCORE = st.sampled_from([-math.inf, -1.5, 0.0, 0.25, 2.0, math.inf])


def test_exact_match():
  predictions = ['a b', 'a', '', 'A']
  targets = ['a b', 'b', '', 'a']
  assert text_metrics.exact_match(predictions, targets) == 0.5


def test_exact_match_takes_white_space_as_sentencepiece_does():
  assert text_metrics.exact_match([' a  b\n'], ['a b']) == 1.0
  assert text_metrics.exact_match(['ab'], ['a b']) == 0.0


def _words(text):
  return re.findall('[a-z0-9]+', text.lower())


def _ngrams(words, n):
  return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _common_subsequence(a, b):
  """Length of the longest, by trying all."""
  if not a or not b:
    return 0
  if a[0] == b[0]:
    return 1 + _common_subsequence(a[1:], b[1:])
  return max(_common_subsequence(a[1:], b), _common_subsequence(a, b[1:]))


def _f_measure(common, num_predicted, num_wanted):
  if not common:
    return 0.0
  precision, recall = common / num_predicted, common / num_wanted
  return 2 * precision * recall / (precision + recall)


def _rouge(prediction, target):
  predicted, wanted = _words(prediction), _words(target)
  scores = {
    'rougeL': _f_measure(
      _common_subsequence(predicted, wanted), len(predicted), len(wanted)
    )
  }
  for n in (1, 2):
    grams = _ngrams(predicted, n), _ngrams(wanted, n)
    scores[f'rouge{n}'] = _f_measure(
      (grams[0] & grams[1]).total(), grams[0].total(), grams[1].total()
    )
  return scores


@hypothesis.given(PAIRS)
def test_rouge_matches_loops(pairs):
  predictions, targets = zip(*pairs, strict=True)
  got = text_metrics.rouge(predictions, targets)
  assert got.keys() == {'rouge1', 'rouge2', 'rougeL'}
  for name, value in got.items():
    expected = sum(_rouge(*pair)[name] for pair in pairs) / len(pairs)
    assert value == pytest.approx(expected, abs=1e-12)


def test_rouge_of_a_copy_and_of_something_else():
  assert set(text_metrics.rouge(['One tea.'], ['one tea']).values()) == {1.0}
  assert set(text_metrics.rouge(['cake'], ['one tea']).values()) == {0.0}


@hypothesis.given(st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=9))
def test_win_rate_matches_loops(pairs):
  outcomes = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
  got = text_metrics.win_rate(*np.array(pairs).T)
  assert (got.wins, got.ties, got.losses) == (
    outcomes.count(1.0),
    outcomes.count(0.5),
    outcomes.count(0.0),
  )
  count = len(outcomes)
  mean = sum(outcomes) / count
  assert got.win_rate == pytest.approx(mean)
  if count == 1:
    assert math.isnan(got.standard_error)
  else:
    variance = sum((x - mean) ** 2 for x in outcomes) / (count - 1)
    assert got.standard_error == pytest.approx(math.sqrt(variance / count))


@hypothesis.given(st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=9))
def test_win_rates_of_both_sides_add_up_to_one(pairs):
  scores, baseline = np.array(pairs).T
  there = text_metrics.win_rate(scores, baseline)
  back = text_metrics.win_rate(baseline, scores)
  assert there.win_rate + back.win_rate == pytest.approx(1.0)
  np.testing.assert_allclose(there.standard_error, back.standard_error)
  assert (there.wins, there.ties) == (back.losses, back.ties)


def test_standard_error_is_that_of_the_mean():
  # A fair coin: 1/2 over the root of the number of throws.
  scores = np.arange(400.0) % 2
  result = text_metrics.win_rate(scores, np.full(400, 0.5))
  assert result.win_rate == 0.5
  assert result.standard_error == pytest.approx(0.025, rel=2e-3)


def test_a_nan_score_makes_the_win_rate_nan():
  result = text_metrics.win_rate(np.array([1.0, np.nan]), np.array([0.0, 0.0]))
  assert math.isnan(result.win_rate) and math.isnan(result.standard_error)
  assert (result.wins, result.ties, result.losses) == (1, 0, 0)


def test_no_examples():
  assert math.isnan(text_metrics.exact_match([], []))
  assert all(math.isnan(v) for v in text_metrics.rouge([], []).values())
  result = text_metrics.win_rate(np.zeros(0), np.zeros(0))
  assert math.isnan(result.win_rate) and math.isnan(result.standard_error)


@pytest.mark.parametrize(
  'metric', [text_metrics.exact_match, text_metrics.rouge]
)
def test_texts_without_a_partner(metric):
  with pytest.raises(ValueError, match='shorter'):
    metric(['a', 'b'], ['a'])
