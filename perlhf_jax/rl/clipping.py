"""PPO's clipped losses, per token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core.typing import Array
from perlhf_jax.objectives import kl


class ClippedLoss(NamedTuple):
  """A loss per token.

  Attributes:
    loss: float32 `[batch, responses, length]`.
    is_clipped: float32, 1 where the token is clipped and has no gradient, 0
      elsewhere.
  """

  loss: Float[jax.Array, 'batch responses length']
  is_clipped: Float[jax.Array, 'batch responses length']


def policy_loss(
  logprobs: Float[Array, 'batch responses length'],
  old_logprobs: Float[Array, 'batch responses length'],
  advantages: Float[Array, 'batch responses length'],
  clip_ratio: float,
) -> ClippedLoss:
  """Computes -min(ratio · A, clip(ratio, 1 ± clip_ratio) · A).

  arXiv:1707.06347, equation 7.

  Args:
    logprobs: `[batch, responses, length]`, from the current policy.
    old_logprobs: from the policy that sampled.
    advantages: A.
    clip_ratio: how far the ratio may move.
  """
  ratio = kl.probability_ratio(logprobs, old_logprobs)
  free = ratio * advantages
  held = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio) * advantages
  return ClippedLoss(
    -jnp.minimum(free, held), (held < free).astype(jnp.float32)
  )


def value_loss(
  values: Float[Array, 'batch responses length'],
  old_values: Float[Array, 'batch responses length'],
  returns: Float[Array, 'batch responses length'],
  value_clip: float | None,
) -> Float[jax.Array, 'batch responses length']:
  """Computes (Z - V)², or (Z - clipped V)² if that is larger.

  Args:
    values: V, `[batch, responses, length]`, from the current value model.
    old_values: the values of the rollout.
    returns: Z.
    value_clip: how far V may move from the old value; None does not clip.
  """
  free = jnp.square(returns - values)
  if value_clip is None:
    return free
  held = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
  return jnp.maximum(free, jnp.square(returns - held))
