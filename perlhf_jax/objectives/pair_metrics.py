"""Metrics of a reward model on pairs, beside `metrics.pairwise_accuracy`.

They say where it is right, how sure it is, and whether it counts tokens. All
use numpy in float64. An undefined metric is NaN.
"""

from typing import Any

import numpy as np

from perlhf_jax.objectives import bins
from perlhf_jax.objectives import metrics


def calibration_error(
  chosen_scores: metrics.Values,
  rejected_scores: metrics.Values,
  num_bins: int = 10,
) -> float:
  """Measures how far the confidence in an order is from how often it is right.

  The confidence of a pair is σ(|chosen - rejected|), the probability that the
  response with the higher score is the preferred one. Confidences are put into
  bins of equal width between 1/2 and 1; the error is the mean over pairs of
  |mean confidence - accuracy| in the pair's bin. A tie is right by one half.

  Args:
    chosen_scores: [examples] scores of the preferred responses.
    rejected_scores: [examples] scores of the other responses.
    num_bins: number of bins.

  Returns:
    The error in [0, 1]; NaN for no examples.
  """
  chosen, rejected = _float64(chosen_scores, rejected_scores)
  credit = metrics.order_credit(chosen, rejected)
  # Half of the bins between 0 and 1 lie above 1/2, where all confidences are.
  return metrics.expected_calibration_error(
    np.abs(chosen - rejected), credit, num_bins=2 * num_bins
  )


def longer_shares(
  chosen_scores: metrics.Values,
  rejected_scores: metrics.Values,
  chosen_lengths: metrics.Lengths,
  rejected_lengths: metrics.Lengths,
) -> dict[str, float]:
  """Computes how often the longer response wins, by scores and by preferences.

  A model whose scores prefer the longer response more often than people do
  rewards length.

  Args:
    chosen_scores: [examples] scores of the preferred responses.
    rejected_scores: [examples] scores of the other responses.
    chosen_lengths: [examples] tokens of the preferred responses.
    rejected_lengths: [examples] tokens of the other responses.

  Returns:
    `longer_scored_higher` (a tie counts one half) and `longer_chosen`, shares
    of the pairs with responses of different lengths; NaN without such pairs.
  """
  chosen, rejected, chosen_lengths, rejected_lengths = _float64(
    chosen_scores, rejected_scores, chosen_lengths, rejected_lengths
  )
  is_longer = chosen_lengths > rejected_lengths
  credit = metrics.order_credit(chosen, rejected)
  differs = chosen_lengths != rejected_lengths
  return {
    'longer_scored_higher': metrics.mean(
      np.where(is_longer, credit, 1 - credit), differs
    ),
    'longer_chosen': metrics.mean(is_longer.astype(np.float64), differs),
  }


def accuracy_bins(
  chosen_scores: metrics.Values,
  rejected_scores: metrics.Values,
  chosen_lengths: metrics.Lengths,
  rejected_lengths: metrics.Lengths,
  margins: metrics.Values,
) -> dict[str, dict[str, list[Any]]]:
  """Splits the pairwise accuracy by what may make a pair easy or hard.

  Args:
    chosen_scores: [examples] scores of the preferred responses; finite.
    rejected_scores: [examples] scores of the other responses; finite.
    chosen_lengths: [examples] tokens of the preferred responses.
    rejected_lengths: [examples] tokens of the other responses.
    margins: [examples] how much better the preferred response is, as the data
      says.

  Returns:
    `bins.average` of the accuracy by name: by `score_difference`, the absolute
    difference of the scores; by `length_difference`, tokens of the preferred
    response minus those of the other; by `margin` of the data, if it varies;
    and `reliability`, the accuracy by the confidence σ(score_difference).
  """
  chosen, rejected, chosen_lengths, rejected_lengths, margins = _float64(
    *(chosen_scores, rejected_scores, chosen_lengths, rejected_lengths),
    margins,
  )
  credit = metrics.order_credit(chosen, rejected)
  difference = np.abs(chosen - rejected)
  values = {
    'score_difference': difference,
    'length_difference': chosen_lengths - rejected_lengths,
  }
  if np.any(margins != margins[0]):
    values['margin'] = margins
  result = {
    name: bins.average(x, credit, bins.quantile_edges(x))
    for name, x in values.items()
  }
  confidence = metrics.sigmoid(difference)
  result['reliability'] = bins.reliability(confidence, credit, least=0.5)
  return result


def _float64(*arrays: metrics.Array) -> list[np.ndarray]:
  return [np.asarray(array, np.float64) for array in arrays]
