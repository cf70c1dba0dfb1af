"""Averages of an outcome over bins of another number, for plots and tables.

They use numpy in float64, as `metrics` does. The results hold lists, so that
they can be written as JSON; an undefined entry is NaN.
"""

from typing import Any

from jaxtyping import Float
import numpy as np

from perlhf_jax.objectives import metrics


def quantile_edges(
  values: metrics.Values, num_bins: int = 5
) -> Float[np.ndarray, ' edges']:
  """Returns edges of bins with about equally many examples.

  Edges are values that occur, so no bin of `average` is empty. Equal values
  share a bin; with many of them there are fewer bins than asked for.

  Args:
    values: [examples] finite numbers, at least one.
    num_bins: the most bins.

  Returns:
    Increasing float64 edges. The last two are equal if the last bin holds
    nothing but the largest value.
  """
  ordered = np.sort(np.asarray(values, np.float64))
  firsts = np.arange(num_bins) * ordered.size // num_bins
  return np.append(np.unique(ordered[firsts]), ordered[-1])


def average(
  values: metrics.Values,
  outcomes: metrics.Values,
  edges: Float[np.ndarray, ' edges'],
) -> dict[str, list[Any]]:
  """Averages outcomes over bins of values.

  A bin holds the values from its lower edge to below its upper edge; the last
  bin holds its upper edge too. Values outside of all bins are left out.

  Args:
    values: [examples] finite numbers, such as differences of two scores.
    outcomes: [examples] what is averaged, such as 1 for a right answer.
    edges: increasing numbers, one more than there are bins.

  Returns:
    `edges`, and a list with one entry per bin for each of: `examples`, their
    number; `value`, the mean value; `outcome`, the mean outcome;
    `standard_error` of the mean outcome. Means of no examples are NaN, and so
    is the standard error of fewer than two.
  """
  values = np.asarray(values, np.float64)
  outcomes = np.asarray(outcomes, np.float64)
  edges = np.asarray(edges, np.float64)
  bin_of = np.searchsorted(edges, values, side='right') - 1
  bin_of[values == edges[-1]] = edges.size - 2
  members = [np.flatnonzero(bin_of == i) for i in range(edges.size - 1)]
  return {
    'edges': edges.tolist(),
    'examples': [rows.size for rows in members],
    'value': [metrics.mean(values[rows]) for rows in members],
    'outcome': [metrics.mean(outcomes[rows]) for rows in members],
    'standard_error': [
      metrics.standard_error(outcomes[rows]) for rows in members
    ],
  }


def reliability(
  probabilities: metrics.Values,
  outcomes: metrics.Values,
  num_bins: int = 10,
  least: float = 0.0,
) -> dict[str, list[Any]]:
  """Compares predicted probabilities with observed frequencies.

  A model is calibrated if `outcome` equals `value` in every bin. The mean of
  their distance, weighted by `examples`, is
  `metrics.expected_calibration_error`.

  Args:
    probabilities: [examples] predictions from `least` to 1.
    outcomes: [examples] 1 for what happened, 0 for what did not.
    num_bins: number of bins of equal width.
    least: the smallest probability; 0.5 for the probability of a choice
      between two.

  Returns:
    The bins; see `average`.
  """
  edges = np.linspace(least, 1.0, num_bins + 1)
  return average(probabilities, outcomes, edges)
