"""RM-Bench's matrix: does a reward model see through style?

Liu et al., 2025 (arXiv:2410.16184): every record has its correct response in
several styles, from plain to elaborate, and an incorrect one in the same
styles. A model that likes style fails where the correct response is the
plainer one. Plain numpy in float64.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
import numpy as np

from perlhf_jax.objectives import metrics

Scores = Float[metrics.Array, 'records styles']


def accuracies(chosen: Scores, rejected: Scores) -> dict[str, Any]:
  """Compares the correct response with the incorrect one in all styles.

  A tie counts as wrong, as in RM-Bench's own code.

  Args:
    chosen: [records, styles] scores of the correct response, the plainest style
      first.
    rejected: [records, styles] scores of the incorrect response.

  Returns:
    `matrix`, the accuracy in rows by the style of the correct response and in
    columns by the style of the incorrect one. Means of its entries: `hard`
    above the diagonal, where the correct response is plainer; `normal` on it;
    `easy` below it; and `score`, the mean of these three. Each with its
    standard error over records, `NAME_standard_error`.
  """
  chosen = np.asarray(chosen, np.float64)[:, :, None]
  rejected = np.asarray(rejected, np.float64)[:, None, :]
  wins = np.where(np.isnan(chosen - rejected), np.nan, chosen > rejected)
  rows, columns = np.indices(wins.shape[1:])
  per_record = {
    'hard': wins[:, rows < columns].mean(axis=1),
    'normal': wins[:, rows == columns].mean(axis=1),
    'easy': wins[:, rows > columns].mean(axis=1),
  }
  per_record['score'] = np.mean(list(per_record.values()), axis=0)
  result: dict[str, Any] = {'matrix': wins.mean(axis=0).tolist()}
  for name, values in per_record.items():
    result[name] = metrics.mean(values)
    result[f'{name}_standard_error'] = metrics.standard_error(values)
  return result


def average(domains: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """Averages `accuracies` of domains, each with the same weight."""
  return {
    name: metrics.mean(np.array([each[name] for each in domains.values()]))
    for name in ('hard', 'normal', 'easy', 'score')
  }
