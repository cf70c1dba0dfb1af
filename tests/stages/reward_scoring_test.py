import math

import numpy as np
import pytest

from perlhf_jax.data import kinds
from perlhf_jax.stages import reward_scoring


def _pairs(chosen, rejected, chosen_lengths, rejected_lengths):
  return {
    'chosen_scores': np.float32(chosen),
    'rejected_scores': np.float32(rejected),
    'chosen_lengths': np.array(chosen_lengths),
    'rejected_lengths': np.array(rejected_lengths),
    'margins': np.zeros(len(chosen), np.float32),
  }


def _points(scores, labels, lengths):
  return {
    'scores': np.float32(scores),
    'labels': np.float32(labels),
    'response_lengths': np.array(lengths),
  }


@pytest.mark.parametrize(
  ('objective', 'columns', 'wanted'),
  [
    (
      'pairwise',
      _pairs([1, 2], [0, 3], [5, 5], [4, 3]),
      {
        'pairwise_accuracy/chosen_shorter': 'no chosen response is the shorter',
        'pairwise_accuracy/equal_length': 'no pair has responses of one length',
      },
    ),
    (
      'pairwise',
      _pairs([1, 2], [0, 3], [5, 5], [5, 5]),
      {
        'pairwise_accuracy/chosen_longer': 'no chosen response is the longer',
        'pairwise_accuracy/chosen_shorter': 'no chosen response is the shorter',
        'score_length_correlation': 'all responses have the same length',
        'longer_scored_higher': 'both responses of each pair have the same',
        'longer_chosen': 'both responses of each pair have the same length',
      },
    ),
    (
      'pairwise',
      _pairs([1, math.nan], [0, 3], [5, 4], [4, 5]),
      dict.fromkeys(
        (
          'pairwise_accuracy',
          'loss',
          'margin',
          'longer_scored_higher',
          'calibration_error',
          'pairwise_accuracy/chosen_shorter',
          'pairwise_accuracy/equal_length',
          'score_length_correlation',
        ),
        '1 of 4 scores are not finite',
      ),
    ),
    (
      'pointwise',
      _points([1, 2], [1, 1], [5, 4]),
      dict.fromkeys(('roc_auc', 'balanced_accuracy'), 'all 2 labels are 1'),
    ),
    (
      'pointwise',
      _points([2, 2], [1, 0], [5, 4]),
      {'score_length_correlation': 'all scores are equal'},
    ),
  ],
)
def test_each_metric_that_is_undefined_has_a_reason(objective, columns, wanted):
  metrics = reward_scoring.reward_metrics(columns, kinds.KINDS[objective])
  undefined = {k for k, v in metrics.items() if not math.isfinite(v)}
  assert undefined == set(wanted)
  reasons = reward_scoring.undefined_reasons(columns, kinds.KINDS[objective])
  for name, why in wanted.items():
    assert reasons[name].startswith(why)


@pytest.mark.parametrize(
  ('objective', 'columns'),
  [
    ('pairwise', _pairs([1, 2, 0], [0, 3, 1], [5, 5, 2], [4, 6, 2])),
    ('pointwise', _points([1, 2], [1, 0], [5, 4])),
  ],
)
def test_metrics_of_varied_examples_are_defined(objective, columns):
  metrics = reward_scoring.reward_metrics(columns, kinds.KINDS[objective])
  assert all(map(math.isfinite, metrics.values()))
  bins = reward_scoring.reward_bins(columns, kinds.KINDS[objective])
  reliability = bins['reliability']
  examples = len(next(iter(columns.values())))
  assert sum(reliability['examples']) == examples
  assert reliability['edges'][0] == (0.5 if objective == 'pairwise' else 0)


def test_scores_that_are_not_finite_have_no_bins():
  pairs = _pairs([1, math.nan], [0, 3], [5, 4], [4, 5])
  assert reward_scoring.reward_bins(pairs, kinds.PAIRWISE) is None
  points = _points([2, math.inf], [1, 0], [5, 4])
  assert reward_scoring.reward_bins(points, kinds.POINTWISE) is None
