"""Best-of-N: how often the best-scored response is a correct one.

The scores of records are those of RewardBench 2 (Malik et al., 2025,
arXiv:2506.01937, and its repository allenai/reward-bench). The curves over N
are those of Gao et al., 2023 (arXiv:2210.10760). Plain numpy in float64.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from perlhf_jax.objectives import metrics

# Weights of the parts of a Ties score. The last is a tie-breaker, so the best
# score is 1.01.
_TIES_WEIGHTS = {
  'tied_accuracy': 0.30,
  'reference_accuracy': 0.30,
  'correctness_preferred': 0.20,
  'correctness_preferred_hard': 0.20,
  'margin_score': 0.01,
}

Scores = Float[metrics.Array, ' responses']


def credit(scores: Scores, num_correct: int) -> float:
  """Scores one record by its best-scored response.

  Args:
    scores: [responses] the correct responses come first.
    num_correct: how many are correct.

  Returns:
    The probability that a random one of the responses with the highest score
    is correct: 1 or 0 without a tie; NaN if a score is NaN. For one correct
    response it is RewardBench 2's 1 / (responses with the highest score).
  """
  scores = np.asarray(scores, np.float64)
  if np.isnan(scores).any():
    return float('nan')
  is_best = scores == scores.max()
  return float(is_best[:num_correct].sum() / is_best.sum())


def is_tied(scores: Scores, num_correct: int) -> bool:
  """Returns whether correct and incorrect responses share the highest score."""
  return 0.0 < credit(scores, num_correct) < 1.0


class Margins(NamedTuple):
  """Distances between the scores of a record.

  Attributes:
    spread: the best minus the worst correct score.
    gap: the worst correct minus the best incorrect score.
  """

  spread: float
  gap: float


def margins(scores: Scores, num_correct: int) -> Margins:
  """Returns the distances between the scores of a record.

  Args:
    scores: [responses] the correct responses come first.
    num_correct: how many are correct; at least one, and not all.
  """
  scores = np.asarray(scores, np.float64)
  correct, incorrect = scores[:num_correct], scores[num_correct:]
  return Margins(
    spread=float(correct.max() - correct.min()),
    gap=float(correct.min() - incorrect.max()),
  )


def ties_score(
  references: Sequence[Margins], tied: Sequence[Margins]
) -> dict[str, float]:
  """Scores the subset Ties, whose prompts have several correct responses.

  Every prompt comes twice: as a reference with one correct response, and tied
  with several. A good model scores all correct responses above all others, and
  by more than the correct ones differ among themselves.

  Args:
    references: of each prompt.
    tied: of each prompt, in the same order.

  Returns:
    The means over prompts of: `tied_accuracy` and `reference_accuracy`, gap >
    0; `correctness_preferred`, gap > spread of the tied record;
    `correctness_preferred_hard`, the smaller gap of both records > spread;
    `margin_score`, tanh(smaller gap / spread - 1), 0 where both are 0. Also
    `score`, their sum with weights 0.3, 0.3, 0.2, 0.2 and 0.01, and its
    `standard_error`.
  """
  spread, gap = np.array(tied, np.float64).reshape(-1, 2).T
  reference_gap = np.array(references, np.float64).reshape(-1, 2)[:, 1]
  smaller = np.minimum(gap, reference_gap)
  with np.errstate(divide='ignore', invalid='ignore'):
    margin_scores = np.tanh(smaller / spread - 1)
  margin_scores[(smaller == 0) & (spread == 0)] = 0.0
  parts = {
    'tied_accuracy': gap > 0,
    'reference_accuracy': reference_gap > 0,
    'correctness_preferred': gap > spread,
    'correctness_preferred_hard': smaller > spread,
    'margin_score': margin_scores,
  }
  parts = {name: part.astype(np.float64) for name, part in parts.items()}
  is_nan = np.isnan(smaller + spread)
  for part in parts.values():
    part[is_nan] = np.nan
  scores = sum(_TIES_WEIGHTS[name] * part for name, part in parts.items())
  return {
    'score': metrics.mean(scores),
    'standard_error': metrics.standard_error(scores),
    **{name: metrics.mean(part) for name, part in parts.items()},
  }


def kl(n: int) -> float:
  """Returns the KL divergence of best-of-n from the policy: ln n - (n - 1)/n.

  In nats. It is exact if no two responses have the same score, and else an
  upper bound (Beirami et al., 2024, arXiv:2401.01879).
  """
  return math.log(n) - (n - 1) / n


def expected_best(
  selecting: Float[metrics.Array, 'prompts samples'],
  judged: Float[metrics.Array, 'prompts samples'],
  n: int,
) -> Float[np.ndarray, ' prompts']:
  """Returns the expected judged score of the best of n samples, per prompt.

  Averages over all choices of n of a prompt's samples, which is unbiased and
  varies less than one choice (Nakano et al., 2021, arXiv:2112.09332). Samples
  that tie for the best are equally likely to be taken.

  Args:
    selecting: [prompts, samples] the scores that decide which is the best.
    judged: [prompts, samples] the scores that are averaged; may be the same.
    n: from 1 to the number of samples.
  """
  selecting = np.asarray(selecting, np.float64)
  judged = np.asarray(judged, np.float64)
  samples = selecting.shape[1]
  # All n of the choice are among the `count` samples with the lowest scores.
  among = np.array(
    [
      math.comb(count, n) / math.comb(samples, n)
      for count in range(samples + 1)
    ]
  )
  below = np.sum(selecting[:, None, :] < selecting[:, :, None], axis=2)
  equal = np.sum(selecting[:, None, :] == selecting[:, :, None], axis=2)
  chance = (among[below + equal] - among[below]) / np.maximum(equal, 1)
  # A NaN equals nothing; a prompt with one has no best sample.
  chance[np.isnan(selecting).any(axis=1)] = np.nan
  return np.sum(chance * judged, axis=1)


def curve(
  selecting: Float[metrics.Array, 'prompts samples'],
  judged: dict[str, Float[metrics.Array, 'prompts samples']],
) -> dict[str, list[Any]]:
  """Follows scores of the best of n while n grows.

  Args:
    selecting: [prompts, samples] the scores that decide which is the best.
    judged: [prompts, samples] scores by name.

  Returns:
    Lists with one entry per n of 1, 2, 4, ... and the number of samples: `n`,
    `kl` in nats, and for each name the mean over prompts and its standard
    error, `NAME_standard_error`.
  """
  samples = np.asarray(selecting).shape[1]
  sizes = sorted({*(2**i for i in range(samples.bit_length())), samples})
  result: dict[str, list[Any]] = {'n': sizes, 'kl': [kl(n) for n in sizes]}
  for name, scores in judged.items():
    expected = [expected_best(selecting, scores, n) for n in sizes]
    result[name] = [metrics.mean(x) for x in expected]
    result[f'{name}_standard_error'] = [
      metrics.standard_error(x) for x in expected
    ]
  return result
