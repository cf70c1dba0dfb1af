"""Combines the scores of rewards, and shapes them before learning."""

import dataclasses
from typing import Annotated

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from perlhf_jax.core import checks
from perlhf_jax.core import typing

Ensemble = Annotated[str, checks.OneOf('mean', 'min')]

# Scores that are all equal are left at 0 instead of being divided by 0.
_LEAST_STD = 1e-6
# A score farther than this many spreads from its rollout's median is cut.
_MOST_SPREADS = 30.0
# Standard deviation over median absolute deviation of a normal distribution.
_STD_OF_DEVIATION = 1.4826
# The squares of many larger scores sum to infinity in float32.
_LARGEST_SCORE = 1e15


@dataclasses.dataclass(frozen=True)
class RewardShaping:
  """How to shape scores, in this order; the defaults change nothing.

  Attributes:
    normalize: whether to subtract the mean of all scores of the run so far and
      to divide by their standard deviation. One huge score would make all
      later scores 0, so a score far from the others of its rollout is cut
      first, see `outlier_bounds`. The metric `outliers` counts cut scores, and
      an alarm goes off.
    clip: scores are then cut to ±clip; None does not cut.
    length_penalty: subtracted for each token of the response, EOS included.
    missing_eos_penalty: subtracted from a response without EOS, which the
      length limit cut off.
  """

  normalize: bool = False
  clip: Annotated[float | None, checks.Positive] = None
  length_penalty: Annotated[float, checks.NotNegative] = 0.0
  missing_eos_penalty: Annotated[float, checks.NotNegative] = 0.0

  def __post_init__(self):
    checks.check_fields(self)


@struct.dataclass
class Moments:
  """Count, mean and spread of a stream of numbers; float32 scalars.

  Checkpoints hold them.

  Attributes:
    count: how many numbers were seen.
    mean: their mean.
    m2: the sum of their squared distances to the mean.
  """

  count: typing.PyTree
  mean: typing.PyTree
  m2: typing.PyTree

  @property
  def std(self) -> Float[jax.Array, '']:
    """The population standard deviation; 0 before any number is seen."""
    return jnp.sqrt(self.m2 / jnp.maximum(self.count, 1.0))


def initial_moments() -> Moments:
  """Returns the moments before any number is seen."""
  return Moments(*(jnp.zeros((), jnp.float32) for _ in range(3)))


def update_moments(
  moments: Moments,
  x: Float[typing.Array, 'batch responses'],
  valid: Bool[typing.Array, 'batch responses'],
) -> Moments:
  """Adds a batch to the moments (Chan, Golub and LeVeque, 1983).

  Args:
    moments: the moments of all numbers before.
    x: numbers `[batch, responses]`.
    valid: true where a number counts; other entries may be anything.

  Returns:
    The moments of all numbers; the division into batches does not matter.
  """
  count = jnp.sum(valid, dtype=jnp.float32)
  # Shifted by one of the numbers, so that equal numbers have spread 0 exactly.
  first = x.reshape(-1)[jnp.argmax(valid.reshape(-1))]
  shifted = jnp.where(valid, x - first, 0.0)
  mean = jnp.sum(shifted) / jnp.maximum(count, 1.0)
  m2 = jnp.sum(jnp.where(valid, jnp.square(shifted - mean), 0.0))
  total = moments.count + count
  share = count / jnp.maximum(total, 1.0)
  distance = jnp.where(count > 0, first + mean - moments.mean, 0.0)
  return Moments(
    count=total,
    mean=moments.mean + distance * share,
    m2=moments.m2 + m2 + jnp.square(distance) * moments.count * share,
  )


def outlier_bounds(
  scores: Float[typing.Array, 'batch responses'],
  valid: Bool[typing.Array, 'batch responses'],
  moments: Moments,
) -> tuple[Float[jax.Array, ''], Float[jax.Array, '']]:
  """Returns the least and the largest score that normalisation does not cut.

  They are 30 spreads from the median of the rollout's scores. The spread is the
  median absolute deviation of the rollout, scaled to a standard deviation (Leys
  et al., 2013), or the standard deviation of all scores before if larger. If
  both are 0, as for rewards that are all equal so far, the spread is 1 or the
  absolute median, whichever is larger. The bounds are within ±1e15.

  Args:
    scores: float32 `[batch, responses]`.
    valid: true where a score counts; other entries may be anything.
    moments: the moments of all scores before.
  """
  x = jnp.clip(scores, -_LARGEST_SCORE, _LARGEST_SCORE)
  x = jnp.where(valid, x, jnp.nan)
  median = jnp.nanmedian(x)
  deviation = jnp.nanmedian(jnp.abs(x - median))
  spread = jnp.maximum(_STD_OF_DEVIATION * deviation, moments.std)
  spread = jnp.where(spread > 0, spread, jnp.maximum(jnp.abs(median), 1.0))
  # The median of a rollout without scores is NaN.
  reach = jnp.nan_to_num(_MOST_SPREADS * spread, nan=_LARGEST_SCORE)
  median = jnp.nan_to_num(median)
  return (
    jnp.maximum(median - reach, -_LARGEST_SCORE),
    jnp.minimum(median + reach, _LARGEST_SCORE),
  )


def count_outliers(
  scores: Float[typing.Array, 'batch responses'],
  mask: Bool[typing.Array, 'batch responses length'],
  moments: Moments,
) -> Float[jax.Array, '']:
  """Counts the scores of a rollout that normalisation cuts.

  Args:
    scores: see `shape_scores`.
    mask: see `shape_scores`.
    moments: the moments before the rollout.
  """
  valid = jnp.any(mask, axis=-1) & jnp.isfinite(scores)
  least, most = outlier_bounds(scores, valid, moments)
  cut = valid & ((scores < least) | (scores > most))
  return jnp.sum(cut, dtype=jnp.float32)


def shape_scores(
  config: RewardShaping,
  scores: Float[typing.Array, 'batch responses'],
  mask: Bool[typing.Array, 'batch responses length'],
  has_eos: Bool[typing.Array, 'batch responses'],
  moments: Moments,
) -> tuple[Float[jax.Array, 'batch responses'], Moments]:
  """Shapes the scores of a rollout; a pure function that can be jitted.

  A score that is NaN or infinite stays so, which makes the step skip the
  update. It does not enter the moments.

  Args:
    config: how to shape.
    scores: float32 `[batch, responses]`, the combined rewards.
    mask: true on the tokens of each response; a response without tokens is
      padding of the batch.
    has_eos: whether each response ends with EOS.
    moments: the moments of all scores before; unchanged without `normalize`.

  Returns:
    The shaped scores, 0 for responses without tokens, and the new moments. The
    moments include the scores of this rollout, and normalise them.
  """
  valid = jnp.any(mask, axis=-1)
  scores = jnp.where(valid, scores, 0.0)
  is_finite = jnp.isfinite(scores)
  shaped = scores
  if config.normalize:
    counts = valid & is_finite
    shaped = jnp.clip(scores, *outlier_bounds(scores, counts, moments))
    moments = update_moments(moments, shaped, counts)
    shaped = (shaped - moments.mean) / jnp.maximum(moments.std, _LEAST_STD)
  if config.clip is not None:
    shaped = jnp.clip(shaped, -config.clip, config.clip)
  shaped = shaped - config.length_penalty * jnp.sum(mask, axis=-1)
  shaped = shaped - config.missing_eos_penalty * ~has_eos
  shaped = jnp.where(is_finite, shaped, scores)
  return jnp.where(valid, shaped, 0.0), moments


def combine(
  scores: Float[typing.Array, 'batch responses members'], how: str
) -> Float[jax.Array, 'batch responses']:
  """Combines the scores of several rewards into one.

  Args:
    scores: `[batch, responses, members]`.
    how: 'mean', or 'min', which is hard to exploit but uses only the strictest
      reward.

  Returns:
    float32 `[batch, responses]`.

  Raises:
    ConfigError: `how` is unknown.
  """
  checks.check('how', how, Ensemble)
  reduce = jnp.mean if how == 'mean' else jnp.min
  return reduce(scores, axis=-1)
