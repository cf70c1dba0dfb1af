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

    β ← β · (1 + clip(KL / target - 1, ±0.2) · responses / horizon)

  β stays in [0, 1], which the paper's (1 - β) · score - β · KL asks for. It is
  part of what a checkpoint holds.

  Attributes:
    target: KL to hold, in nats a response.
    horizon: responses in which β follows the KL; smaller is quicker.
  """

  target: Annotated[float, checks.Positive]
  horizon: Annotated[float, checks.Positive] = 10_000

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
    return jnp.clip(
      kl_beta * (1.0 + error * num_responses / self.horizon), 0, 1
    )
