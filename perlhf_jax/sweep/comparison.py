"""Statistics of a comparison: mean, spread, and paired differences."""

from collections.abc import Mapping, Sequence
import statistics
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95


class Difference(NamedTuple):
  """A paired difference between two arms.

  Attributes:
    mean: mean of the differences.
    low: lower end of the confidence interval; None with fewer than two pairs.
    high: upper end.
    pairs: number of pairs.
  """

  mean: float
  low: float | None
  high: float | None
  pairs: int


def mean_of(values: Sequence[float]) -> float | None:
  """Returns the mean; None without values."""
  return statistics.fmean(values) if values else None


def deviation_of(values: Sequence[float]) -> float | None:
  """Returns the standard deviation of a sample; None below two values."""
  return statistics.stdev(values) if len(values) > 1 else None


def paired_difference(
  values: Mapping[int, float],
  baseline: Mapping[int, float],
  confidence: float = CONFIDENCE,
) -> Difference | None:
  """Compares two arms by the seeds that both have.

  The interval is Student's t interval of the mean of the differences. With n
  pairs it has n - 1 degrees of freedom.

  Args:
    values: the metric of an arm, by seed.
    baseline: the metric of the baseline, by seed.
    confidence: confidence of the interval.

  Returns:
    The mean of values - baseline with its interval; None without pairs.
  """
  pairs = [values[seed] - baseline[seed] for seed in values.keys() & baseline]
  if not pairs:
    return None
  mean = statistics.fmean(pairs)
  if len(pairs) == 1:
    return Difference(mean, None, None, 1)
  error = statistics.stdev(pairs) / len(pairs) ** 0.5
  reach = float(stats.t.ppf((1 + confidence) / 2, len(pairs) - 1)) * error
  return Difference(mean, mean - reach, mean + reach, len(pairs))
