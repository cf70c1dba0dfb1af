"""What happens to scores before they are learned from."""

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


@dataclasses.dataclass(frozen=True)
class RewardShaping:
  """How scores are shaped, in this order; by default not at all.

  Attributes:
    normalize: whether to subtract the mean of all scores of the run so far and
      to divide by their standard deviation.
    clip: scores are then cut to ±clip; None to leave them.
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

  Part of what a checkpoint holds.

  Attributes:
    count: numbers seen.
    mean: their mean.
    m2: the sum of their squared distances to the mean.
  """

  count: typing.PyTree
  mean: typing.PyTree
  m2: typing.PyTree

  @property
  def std(self) -> Float[jax.Array, '']:
    """The standard deviation of the population; 0 before anything is seen."""
    return jnp.sqrt(self.m2 / jnp.maximum(self.count, 1.0))


def initial_moments() -> Moments:
  """Returns the moments of nothing."""
  return Moments(*(jnp.zeros((), jnp.float32) for _ in range(3)))


def update_moments(
  moments: Moments,
  x: Float[typing.Array, 'batch responses'],
  valid: Bool[typing.Array, 'batch responses'],
) -> Moments:
  """Adds a batch to the moments (Chan, Golub and LeVeque, 1983).

  Args:
    moments: of everything before.
    x: `[batch, responses]` numbers.
    valid: true where a number counts; others may be anything.

  Returns:
    The moments of all numbers, however they were cut into batches.
  """
  count = jnp.sum(valid, dtype=jnp.float32)
  # Around any of the numbers, so that equal ones have no spread whatever.
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


def shape_scores(
  config: RewardShaping,
  scores: Float[typing.Array, 'batch responses'],
  mask: Bool[typing.Array, 'batch responses length'],
  has_eos: Bool[typing.Array, 'batch responses'],
  moments: Moments,
) -> tuple[Float[jax.Array, 'batch responses'], Moments]:
  """Shapes the scores of a rollout; pure, to be jitted.

  A score that is NaN or infinite stays so, for the update to be skipped, and
  does not enter the moments.

  Args:
    config: what to do.
    scores: float32 `[batch, responses]`, of the reward.
    mask: true on each response; responses without a token fill up the batch.
    has_eos: whether each response ended by itself.
    moments: of all scores before; unchanged without `normalize`.

  Returns:
    The shaped scores, 0 for responses without a token, and the moments with
    the scores of this rollout, which are normalised by them already.
  """
  valid = jnp.any(mask, axis=-1)
  scores = jnp.where(valid, scores, 0.0)
  is_finite = jnp.isfinite(scores)
  shaped = scores
  if config.normalize:
    moments = update_moments(moments, scores, valid & is_finite)
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
  """Makes one score of those of several rewards.

  Args:
    scores: `[batch, responses, members]`.
    how: 'mean', or 'min', which is hard to fool but sees only the strictest.

  Returns:
    float32 `[batch, responses]`.

  Raises:
    ConfigError: there is no such `how`.
  """
  checks.check('how', how, Ensemble)
  reduce = jnp.mean if how == 'mean' else jnp.min
  return reduce(scores, axis=-1)
