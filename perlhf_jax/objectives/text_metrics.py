"""Metrics of generated text, and the win rate of one model over another.

Plain Python and numpy. A metric of no examples is NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from perlhf_jax.objectives import metrics

_ROUGE = ('rouge1', 'rouge2', 'rougeL')


class WinRate(NamedTuple):
  """How often a model's scores beat a baseline's scores.

  Attributes:
    wins: number of examples with a higher score than the baseline's.
    ties: number of examples with equal scores.
    losses: number of examples with a lower score.
    win_rate: (wins + ties/2) / examples, in [0, 1].
    standard_error: standard error of `win_rate`, from the sample variance of
      the outcomes 0, 1/2 and 1; NaN for fewer than two examples.
  """

  wins: int
  ties: int
  losses: int
  win_rate: float
  standard_error: float


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> float:
  """Computes the share of predictions that equal their targets.

  Runs of white space count as one space, and white space at the ends is
  ignored, because a SentencePiece vocabulary does not preserve it.

  Args:
    predictions: texts.
    targets: the expected text of each prediction.

  Returns:
    The share in [0, 1].

  Raises:
    ValueError: `predictions` and `targets` differ in length.
  """
  return _mean(
    [
      prediction.split() == target.split()
      for prediction, target in zip(predictions, targets, strict=True)
    ]
  )


def rouge(
  predictions: Sequence[str], targets: Sequence[str]
) -> dict[str, float]:
  """Computes the mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L.

  Uses the package `rouge_score` without stemming: words are runs of a-z and
  0-9 in lower case; ROUGE-L treats a text as one sentence.

  Args:
    predictions: texts.
    targets: the reference text of each prediction.

  Returns:
    `rouge1`, `rouge2` and `rougeL`, in [0, 1].

  Raises:
    ValueError: `predictions` and `targets` differ in length.
  """
  # Imports nltk, which takes seconds.
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(_ROUGE, use_stemmer=False)
  scores = [
    scorer.score(target, prediction)
    for prediction, target in zip(predictions, targets, strict=True)
  ]
  return {name: _mean([s[name].fmeasure for s in scores]) for name in _ROUGE}


def win_rate(
  scores: Float[np.ndarray, ' examples'],
  baseline_scores: Float[np.ndarray, ' examples'],
) -> WinRate:
  """Compares a model's scores with a baseline's scores on the same prompts.

  A tie counts one half, so a model has win rate 1/2 against itself. A NaN score
  makes the rate NaN, and counts as neither win, tie nor loss.

  Args:
    scores: [examples] scores of the model's responses.
    baseline_scores: [examples] scores of the baseline's responses.
  """
  scores = np.asarray(scores, np.float64)
  baseline_scores = np.asarray(baseline_scores, np.float64)
  wins, losses = scores > baseline_scores, scores < baseline_scores
  outcomes = 0.5 + 0.5 * wins - 0.5 * losses
  outcomes[np.isnan(scores) | np.isnan(baseline_scores)] = np.nan
  return WinRate(
    wins=int(wins.sum()),
    ties=int((outcomes == 0.5).sum()),
    losses=int(losses.sum()),
    win_rate=_mean(outcomes),
    standard_error=metrics.standard_error(outcomes),
  )


def _mean(values: Sequence[float] | np.ndarray) -> float:
  return float(np.mean(values)) if len(values) else float('nan')
