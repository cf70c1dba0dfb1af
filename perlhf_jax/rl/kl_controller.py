"""Adapting β so that the KL stays near a target."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from perlhf_jax.core import checks
from perlhf_jax.core import typing

# Ziegler et al.: one bad estimate of the KL must not change β much.
_MAX_ERROR = 0.2


@dataclasses.dataclass(frozen=True)
class AdaptiveKl:
  """The proportional controller of Ziegler et al. (arXiv:1909.08593, 2.2).

    β ← β · (1 + clip(KL / target - 1, ±0.2) · min(responses / horizon, 1))

  No rollout changes β by more than a fifth, however short the horizon is. The
  formula of Ziegler et al., without the min, would take β to 0 in one rollout
  of 5 horizons, and no factor leads back from 0. β stays in [least_beta, 1].
  The objective (1 - β) · score - β · KL requires the upper bound. The lower
  bound lets β rise again after the KL was too small for long. A KL_BETA below
  `least_beta` does not fall further. A β of 0, from checkpoints of versions
  without this bound, is raised to it. Checkpoints hold β.

  Attributes:
    target: KL to hold, in nats per response.
    horizon: number of responses over which β follows the KL; a smaller one is
      quicker, down to the number of responses per rollout.
    least_beta: the smallest β.
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
    """Returns the next β; a pure function that can be jitted.

    Args:
      kl_beta: β of this rollout.
      kl: mean KL of its responses, in nats; β is kept if it is not finite.
      num_responses: the number of responses.
    """
    error = jnp.clip(kl / self.target - 1.0, -_MAX_ERROR, _MAX_ERROR)
    error = jnp.where(jnp.isfinite(kl), error, 0.0)
    share = jnp.minimum(num_responses / self.horizon, 1.0)
    least = jnp.where(
      kl_beta > 0, jnp.minimum(kl_beta, self.least_beta), self.least_beta
    )
    return jnp.clip(kl_beta * (1.0 + error * share), least, 1.0)
