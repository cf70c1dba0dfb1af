"""Ratios of two policies, and losses that bound them, per token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from perlhf_jax.core import masking
from perlhf_jax.core.typing import Array
from perlhf_jax.objectives import kl


class ClippedLoss(NamedTuple):
  """A loss per token.

  Attributes:
    loss: float32 `[batch, responses, length]`.
    is_clipped: float32, 1 where the ratio is clipped in a way that changes the
      gradient, 0 elsewhere.
  """

  loss: Float[jax.Array, 'batch responses length']
  is_clipped: Float[jax.Array, 'batch responses length']


def sequence_ratio(
  logprobs: Float[Array, 'batch responses length'],
  old_logprobs: Float[Array, 'batch responses length'],
  mask: Bool[Array, 'batch responses length'],
) -> Float[jax.Array, 'batch responses length']:
  """Computes GSPO's ratio of each response, the same at all its tokens.

  It is the geometric mean of the ratios of the response's tokens
  (arXiv:2507.18071, equation 7).

  Args:
    logprobs: `[batch, responses, length]`, from the current policy.
    old_logprobs: from the policy before the update.
    mask: true on the response.
  """
  mean = masking.masked_mean(logprobs - old_logprobs, mask, axis=-1)
  ratio = kl.probability_ratio(mean, jnp.zeros_like(mean))
  return jnp.broadcast_to(ratio[..., None], mask.shape)


def policy_loss(
  ratio: Float[Array, 'batch responses length'],
  advantages: Float[Array, 'batch responses length'],
  clip_ratio: float,
  clip_ratio_high: float | None = None,
) -> ClippedLoss:
  """Computes -min(ratio · A, clip(ratio, 1 - low, 1 + high) · A).

  arXiv:1707.06347, equation 7; with two bounds arXiv:2503.14476, equation 10.

  Args:
    ratio: `[batch, responses, length]`, of the current policy to the old one.
    advantages: A.
    clip_ratio: low, how far the ratio may fall below 1.
    clip_ratio_high: high, how far it may rise above 1; None for `clip_ratio`.
  """
  free = ratio * advantages
  held = _clip(ratio, clip_ratio, clip_ratio_high) * advantages
  return ClippedLoss(
    -jnp.minimum(free, held), (held < free).astype(jnp.float32)
  )


def weighted_log_loss(
  logprobs: Float[Array, 'batch responses length'],
  ratio: Float[Array, 'batch responses length'],
  advantages: Float[Array, 'batch responses length'],
  clip_ratio: float,
  clip_ratio_high: float | None = None,
) -> ClippedLoss:
  """Computes CISPO's loss, -clip(ratio, 1 - low, 1 + high) · A · log π.

  The clipped ratio is a constant weight, so that every token has a gradient,
  also beyond the bounds (arXiv:2506.13585, equations 4 and 5).

  Args:
    logprobs: log π, `[batch, responses, length]`, from the current policy.
    ratio: of the current policy to the old one.
    advantages: A.
    clip_ratio: low; 1 or more leaves no lower bound.
    clip_ratio_high: high; None for `clip_ratio`.
  """
  weight = _clip(ratio, clip_ratio, clip_ratio_high)
  return ClippedLoss(
    -jax.lax.stop_gradient(weight) * advantages * logprobs,
    (weight != ratio).astype(jnp.float32),
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


def _clip(ratio, low, high):
  return jnp.clip(ratio, 1.0 - low, 1.0 + (low if high is None else high))
