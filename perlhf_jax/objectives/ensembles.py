"""Several reward models as one, and how far they disagree.

Coste et al., 2024 (arXiv:2310.02743): the worst of several reward models, or
their mean minus a multiple of their spread, is harder to exploit than their
mean. Plain numpy in float64.
"""

from jaxtyping import Float
import numpy as np

from perlhf_jax.objectives import metrics

Scores = Float[metrics.Array, 'models *responses']


def combine(scores: Scores, penalty: float) -> dict[str, np.ndarray]:
  """Combines the scores of several models.

  Args:
    scores: [models, ...] scores of the same responses.
    penalty: how many standard deviations `lower_bound` lies below the mean.

  Returns:
    float64 [...] by name: `mean`, `min`, and `lower_bound`, mean - penalty ·
    standard deviation.
  """
  scores = np.asarray(scores, np.float64)
  mean = scores.mean(axis=0)
  return {
    'mean': mean,
    'min': scores.min(axis=0),
    'lower_bound': mean - penalty * spread(scores),
  }


def spread(scores: Scores) -> np.ndarray:
  """Returns the population standard deviation over models, float64 [...]."""
  return np.asarray(scores, np.float64).std(axis=0)


def disputed(decisions: metrics.Array) -> Float[np.ndarray, ' examples']:
  """Returns 1 per example on which not all models decide the same, else 0.

  Args:
    decisions: [models, examples] a number for what each model decides.
  """
  decisions = np.asarray(decisions)
  return np.any(decisions != decisions[0], axis=0).astype(np.float64)
