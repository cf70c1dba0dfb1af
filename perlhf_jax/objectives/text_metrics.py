"""Metrics of generated text, and of one model against another.

Plain Python and numpy. A metric of no examples is NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

_ROUGE = ('rouge1', 'rouge2', 'rougeL')


class WinRate(NamedTuple):
  """How often scores beat those of a baseline.

  Attributes:
    wins: examples with the higher score.
    ties: examples with equal scores.
    losses: examples with the lower score.
    win_rate: (wins + ties/2) / examples, in [0, 1].
    standard_error: of `win_rate`, from the sample variance of the outcomes
      0, 1/2 and 1; NaN of fewer than two examples.
  """

  wins: int
  ties: int
  losses: int
  win_rate: float
  standard_error: float


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> float:
  """Computes the share of predictions that equal their targets.

  Runs of white space count as one space, and none at the ends, because a
  SentencePiece vocabulary cannot write any other.

  Args:
    predictions: texts.
    targets: what each of them should be.

  Returns:
    The share in [0, 1].

  Raises:
    ValueError: there are more of one than of the other.
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

  As the package `rouge_score` does without stemming: words are runs of a-z
  and 0-9 in lower case; ROUGE-L takes a text as one sentence.

  Args:
    predictions: texts.
    targets: the reference of each of them.

  Returns:
    `rouge1`, `rouge2` and `rougeL`, in [0, 1].

  Raises:
    ValueError: there are more of one than of the other.
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
  """Compares scores of responses with those of a baseline's responses.

  A tie counts one half, so that a model against itself has win rate 1/2. A
  NaN score makes the rate NaN, and is no win, tie or loss.

  Args:
    scores: [examples] of the model, on the same prompts as the baseline.
    baseline_scores: [examples] of the baseline.
  """
  scores = np.asarray(scores, np.float64)
  baseline_scores = np.asarray(baseline_scores, np.float64)
  wins, losses = scores > baseline_scores, scores < baseline_scores
  outcomes = 0.5 + 0.5 * wins - 0.5 * losses
  outcomes[np.isnan(scores) | np.isnan(baseline_scores)] = np.nan
  count = outcomes.size
  return WinRate(
    wins=int(wins.sum()),
    ties=int((outcomes == 0.5).sum()),
    losses=int(losses.sum()),
    win_rate=_mean(outcomes),
    standard_error=float(outcomes.std(ddof=1) / np.sqrt(count))
    if count > 1
    else float('nan'),
  )


def _mean(values: Sequence[float] | np.ndarray) -> float:
  return float(np.mean(values)) if len(values) else float('nan')
