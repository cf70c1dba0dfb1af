"""Adapting β so that the KL stays near a target."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from perlhf_jax.core import checks
from perlhf_jax.core import typing

# Ziegler et al.: one bad estimate of the KL must not throw β about.
_MAX_ERROR = 0.2


@dataclasses.dataclass(frozen=True)
class AdaptiveKl:
  """The proportional controller of Ziegler et al. (arXiv:1909.08593, 2.2).

    β ← β · (1 + clip(KL / target - 1, ±0.2) · min(responses / horizon, 1))

  So no rollout changes β by more than a fifth, however short the horizon is:
  the paper's formula would take β to 0 in one rollout of 5 horizons, and no
  factor leads back from there. β stays in [least_beta, 1]; the paper's
  (1 - β) · score - β · KL asks for the upper bound, and the lower one lets β
  return when the KL does, however long it was too small. A KL_BETA below
  `least_beta` does not fall further; a β of 0, in checkpoints of versions
  without this bound, is raised to it. β is part of what a checkpoint holds.

  Attributes:
    target: KL to hold, in nats a response.
    horizon: responses in which β follows the KL; smaller is quicker, down to
      the responses of a rollout.
    least_beta: below it β does not fall.
  """

  target: Annotated[float, checks.Positive]
  horizon: Annotated[float, checks.Positive] = 10_000
  least_beta: Annotated[float, checks.Range(above=0, most=1)] = 1e-4

  def __post_init__(self):
    checks.check_fields(self)

  def update(
    self,
    kl_beta: Float[typing.Array, ''],
    kl: Float[typing.Array, ''],
    num_responses: Float[typing.Array, ''] | Int[typing.Array, ''] | int,
  ) -> Float[jax.Array, '']:
    """Returns the next β; pure, to be jitted.

    Args:
      kl_beta: β of this rollout.
      kl: mean KL of its responses, in nats; β is kept if it is not finite.
      num_responses: how many there were.
    """
    error = jnp.clip(kl / self.target - 1.0, -_MAX_ERROR, _MAX_ERROR)
    error = jnp.where(jnp.isfinite(kl), error, 0.0)
    share = jnp.minimum(num_responses / self.horizon, 1.0)
    least = jnp.where(
      kl_beta > 0, jnp.minimum(kl_beta, self.least_beta), self.least_beta
    )
    return jnp.clip(kl_beta * (1.0 + error * share), least, 1.0)
