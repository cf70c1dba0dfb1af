"""Metrics of reward models over whole evaluation sets.

They use numpy in float64: evaluation sets are small, and results are compared
to the last digit. Each metric takes an optional mask, which is false at
examples that only pad the last batch.

An undefined metric is NaN: any metric of no examples, balanced accuracy and
ROC-AUC of a single class, a correlation with a constant. A NaN score makes the
metric NaN too; it does not count as a wrong answer.
"""

import jax
from jaxtyping import Bool, Float, Int
import numpy as np

# Evaluation collects numpy arrays; device arrays are copied to the host.
Array = jax.Array | np.ndarray
Values = Float[Array, ' examples']
Labels = Float[Array, ' examples']
Lengths = Int[Array, ' examples']
Mask = Bool[Array, ' examples'] | None


def mean(values: Values, mask: Mask = None) -> float:
  """Averages one number per example, such as a loss.

  Args:
    values: [examples].
    mask: [examples] true where an example counts; all by default.

  Returns:
    The mean; NaN for no examples.
  """
  (values,) = _select(mask, values)
  return float(np.mean(values)) if values.size else float('nan')


def standard_error(values: Values, mask: Mask = None) -> float:
  """Computes the standard error of the mean, from the sample variance.

  Args:
    values: [examples].
    mask: [examples] true where an example counts; all by default.

  Returns:
    The standard error; NaN for fewer than two examples.
  """
  (values,) = _select(mask, values)
  if values.size < 2:
    return float('nan')
  return float(np.std(values, ddof=1) / np.sqrt(values.size))


def sigmoid(scores: Values) -> Float[np.ndarray, ' examples']:
  """Computes σ(scores) in float64, without overflow."""
  return np.exp(-np.logaddexp(0, -np.asarray(scores, np.float64)))


def pairwise_accuracy(
  chosen_scores: Values, rejected_scores: Values, mask: Mask = None
) -> float:
  """Computes the share of pairs whose chosen response scores higher.

  A tie counts one half, so a constant score has accuracy 0.5.

  Args:
    chosen_scores: [examples] scores of the preferred responses.
    rejected_scores: [examples] scores of the other responses.
    mask: [examples] true where an example counts; all by default.

  Returns:
    The accuracy in [0, 1]; NaN for no examples.
  """
  chosen, rejected = _select(mask, chosen_scores, rejected_scores)
  return mean(order_credit(chosen, rejected))


def order_credit(
  chosen_scores: Values, rejected_scores: Values
) -> Float[np.ndarray, ' examples']:
  """Returns 1 per pair in the right order, 1/2 per tie, and 0 otherwise."""
  chosen, rejected = _select(None, chosen_scores, rejected_scores)
  return np.heaviside(chosen - rejected, 0.5)


def pairwise_accuracy_by_length(
  chosen_scores: Values,
  rejected_scores: Values,
  chosen_lengths: Lengths,
  rejected_lengths: Lengths,
  mask: Mask = None,
) -> dict[str, float]:
  """Splits the pairwise accuracy by which response is longer.

  This exposes a reward model that mostly counts tokens: it is accurate where
  the chosen response is longer and inaccurate where it is shorter.

  Args:
    chosen_scores: [examples] scores of the preferred responses.
    rejected_scores: [examples] scores of the other responses.
    chosen_lengths: [examples] tokens of the preferred responses.
    rejected_lengths: [examples] tokens of the other responses.
    mask: [examples] true where an example counts; all by default.

  Returns:
    The accuracies `chosen_longer`, `chosen_shorter` and `equal_length`; NaN
    for a group without pairs.
  """
  chosen, rejected, chosen_lengths, rejected_lengths = _select(
    mask, chosen_scores, rejected_scores, chosen_lengths, rejected_lengths
  )
  groups = {
    'chosen_longer': chosen_lengths > rejected_lengths,
    'chosen_shorter': chosen_lengths < rejected_lengths,
    'equal_length': chosen_lengths == rejected_lengths,
  }
  return {
    name: pairwise_accuracy(chosen, rejected, group)
    for name, group in groups.items()
  }


def accuracy(scores: Values, labels: Labels, mask: Mask = None) -> float:
  """Computes the share of responses on the right side of probability 0.5.

  A response is predicted good if its score (a logit) is above 0, and bad if the
  score is exactly 0.

  Args:
    scores: [examples] logits of "this response is good".
    labels: [examples] good above 0.5, bad otherwise.
    mask: [examples] true where an example counts; all by default.

  Returns:
    The accuracy in [0, 1]; NaN for no examples.
  """
  scores, labels = _select(mask, scores, labels)
  return mean(_is_right(scores, labels))


def balanced_accuracy(
  scores: Values, labels: Labels, mask: Mask = None
) -> float:
  """Averages the accuracy on good and on bad responses.

  A model that predicts the same class for all responses has balanced accuracy
  0.5, whatever the class sizes.

  Args:
    scores: [examples] logits of "this response is good".
    labels: [examples] good above 0.5, bad otherwise.
    mask: [examples] true where an example counts; all by default.

  Returns:
    The balanced accuracy in [0, 1]; NaN where a class has no examples.
  """
  scores, labels = _select(mask, scores, labels)
  is_right = _is_right(scores, labels)
  is_good = labels > 0.5
  return (mean(is_right, is_good) + mean(is_right, ~is_good)) / 2


def roc_auc(scores: Values, labels: Labels, mask: Mask = None) -> float:
  """Computes the area under the receiver operating characteristic.

  It is the probability that a random good response scores higher than a random
  bad one, with ties counting one half; it is computed from ranks.

  Args:
    scores: [examples] scores; only their order matters.
    labels: [examples] good above 0.5, bad otherwise.
    mask: [examples] true where an example counts; all by default.

  Returns:
    The area in [0, 1]; NaN where a class has no examples.
  """
  scores, labels = _select(mask, scores, labels)
  is_good = labels > 0.5
  num_good = int(is_good.sum())
  num_bad = is_good.size - num_good
  if not num_good or not num_bad or np.isnan(scores).any():
    return float('nan')
  # If only good responses were ranked, their ranks would sum to n(n+1)/2; each
  # bad response that a good one beats adds 1.
  beaten = _ranks(scores)[is_good].sum() - num_good * (num_good + 1) / 2
  return float(beaten / (num_good * num_bad))


def expected_calibration_error(
  scores: Values, labels: Labels, mask: Mask = None, num_bins: int = 10
) -> float:
  """Measures how far predicted probabilities are from observed frequencies.

  The probabilities σ(score) are put into bins of equal width; the error is the
  mean over examples of |mean probability - mean label| in the example's bin.

  Args:
    scores: [examples] logits of "this response is good".
    labels: [examples] 1 for good, 0 for bad.
    mask: [examples] true where an example counts; all by default.
    num_bins: number of bins between 0 and 1.

  Returns:
    The error in [0, 1]; NaN for no examples.
  """
  scores, labels = _select(mask, scores, labels)
  if not scores.size or np.isnan(scores).any():
    return float('nan')
  probabilities = sigmoid(scores)
  bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
  gaps = np.bincount(bins, weights=probabilities - labels, minlength=num_bins)
  return float(np.abs(gaps).sum() / scores.size)


def pearson_correlation(x: Array, y: Array, mask: Mask = None) -> float:
  """Computes the linear correlation, such as between score and length.

  Args:
    x: [examples] numbers.
    y: [examples] numbers.
    mask: [examples] true where an example counts; all by default.

  Returns:
    The correlation in [-1, 1]; NaN where `x` or `y` does not vary.
  """
  x, y = _select(mask, x, y)
  # Compare exactly: rounding can give a constant a tiny variance.
  if not x.size or np.all(x == x[0]) or np.all(y == y[0]):
    return float('nan')
  x = (x - x.mean()) / np.abs(x - x.mean()).max()
  y = (y - y.mean()) / np.abs(y - y.mean()).max()
  return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def spearman_correlation(x: Array, y: Array, mask: Mask = None) -> float:
  """Computes the correlation of ranks; tied values share their mean rank.

  Args:
    x: [examples] numbers.
    y: [examples] numbers.
    mask: [examples] true where an example counts; all by default.

  Returns:
    The correlation in [-1, 1]; NaN where `x` or `y` does not vary.
  """
  x, y = _select(mask, x, y)
  if np.isnan(x).any() or np.isnan(y).any():
    return float('nan')
  return pearson_correlation(_ranks(x), _ranks(y))


def _select(mask: Mask, *arrays: Array) -> list[np.ndarray]:
  """Returns the unmasked examples in float64."""
  arrays = [np.asarray(array, np.float64) for array in arrays]
  if mask is None:
    return arrays
  mask = np.asarray(mask)
  return [array[mask] for array in arrays]


def _is_right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns 1 for a correct prediction, 0 for a wrong one, NaN for NaN."""
  is_right = ((scores > 0) == (labels > 0.5)).astype(np.float64)
  return np.where(np.isnan(scores), np.nan, is_right)


def _ranks(values: np.ndarray) -> np.ndarray:
  """Returns ranks from 1; tied values share the mean of their ranks."""
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  highest = np.cumsum(counts)
  return (highest - (counts - 1) / 2)[inverse]
