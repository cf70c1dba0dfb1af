"""Computes returns and advantages from scores, by default with discount 1.

Arrays are `[batch, responses, length]`, or `[batch, responses]` with one number
per response. A mask is true from the first to the last token of a response, EOS
included. Masked positions may hold anything, NaN and infinity included: they do
not affect results or gradients, and results are 0 there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from perlhf_jax.core import masking
from perlhf_jax.core.typing import Array

# Lower bound of variances, because the square root has no gradient at 0.
_LEAST_VARIANCE = 1e-20


def token_rewards(
  scores: Float[Array, 'batch responses'],
  kl: Float[Array, 'batch responses length'],
  mask: Bool[Array, 'batch responses length'],
  kl_beta: Float[Array, ''] | float,
) -> Float[jax.Array, 'batch responses length']:
  """Distributes the paper's objective over the tokens (section 2.2).

  J = E[(1 - β) · score - β · KL]: every token gets the reward -β · kl, and the
  last token also gets (1 - β) · score. The rewards of a response sum to its
  term in J.

  Args:
    scores: [batch, responses].
    kl: [batch, responses, length] KL estimate of each token, in nats.
    mask: true on the response.
    kl_beta: β, in [0, 1].

  Returns:
    float32 [batch, responses, length].
  """
  length = mask.shape[-1]
  last = masking.last_valid_index(mask.reshape(-1, length))
  last = last.reshape(*mask.shape[:-1], 1)
  is_last = mask & (jnp.arange(length) == last)
  earned = jnp.where(is_last, jnp.asarray(scores)[..., None], 0.0)
  paid = jnp.where(mask, kl, 0.0)
  return (1.0 - kl_beta) * earned - kl_beta * paid


def returns_to_go(
  rewards: Float[Array, 'batch responses length'],
  mask: Bool[Array, 'batch responses length'],
) -> Float[jax.Array, 'batch responses length']:
  """Sums the rewards from each token to the last: the paper's Z_t."""
  rewards = jnp.where(mask, rewards, 0.0)
  sums = jax.lax.cumsum(rewards, axis=rewards.ndim - 1, reverse=True)
  return jnp.where(mask, sums, 0.0)


def gae(
  rewards: Float[Array, 'batch responses length'],
  values: Float[Array, 'batch responses length'],
  mask: Bool[Array, 'batch responses length'],
  gamma: float = 1.0,
  gae_lambda: float = 0.95,
) -> Float[jax.Array, 'batch responses length']:
  """Computes generalized advantage estimates (arXiv:1506.02438).

  A_t = δ_t + γ·λ·A_{t+1}, δ_t = r_t + γ·V_{t+1} - V_t. V and A are 0 after the
  last token, also if the response was cut off at the length limit.

  Args:
    rewards: [batch, responses, length].
    values: [batch, responses, length], each predicted before its token.
    mask: true on the response.
    gamma: discount γ.
    gae_lambda: λ; 1 gives returns minus values, 0 the one-step differences δ_t.
  """
  rewards = jnp.where(mask, rewards, 0.0)
  values = jnp.where(mask, values, 0.0)
  next_values = jnp.pad(values[..., 1:], ((0, 0), (0, 0), (0, 1)))
  deltas = rewards + gamma * next_values - values

  def earlier(advantage, delta):
    advantage = delta + gamma * gae_lambda * advantage
    return advantage, advantage

  start = jnp.zeros(deltas.shape[:-1], deltas.dtype)
  _, advantages = jax.lax.scan(
    earlier, start, jnp.moveaxis(deltas, -1, 0), reverse=True
  )
  return jnp.where(mask, jnp.moveaxis(advantages, 0, -1), 0.0)


def leave_one_out(
  returns: Float[Array, 'batch responses'],
  valid: Bool[Array, 'batch responses'],
) -> Float[jax.Array, 'batch responses']:
  """Subtracts from each return the mean return of the prompt's other responses.

  Args:
    returns: [batch, responses].
    valid: true where there is a response.

  Returns:
    float32 [batch, responses]; exactly 0 if all returns of a prompt are equal,
    and 0 if the prompt has no other response.
  """
  returns = _from_largest(returns, valid, axis=-1)
  count = jnp.sum(valid, axis=-1, keepdims=True)
  others = jnp.sum(returns, axis=-1, keepdims=True) - returns
  advantages = returns - others / jnp.maximum(count - 1, 1)
  return jnp.where(valid & (count > 1), advantages, 0.0)


def group_normalize(
  scores: Float[Array, 'batch responses'],
  valid: Bool[Array, 'batch responses'],
  epsilon: float = 1e-4,
  scale_by_std: bool = True,
) -> Float[jax.Array, 'batch responses']:
  """Normalizes the scores of each prompt's responses.

  (s - mean) / (std + ε), with the population standard deviation.

  Args:
    scores: [batch, responses].
    valid: true where there is a response.
    epsilon: ε; limits the scale of groups with nearly equal scores.
    scale_by_std: whether to divide by std + ε.

  Returns:
    float32 [batch, responses]; exactly 0 if all scores of a prompt are equal.
  """
  return _normalize(scores, valid, -1, epsilon, scale_by_std)


def whiten(
  x: Float[Array, 'batch responses length'],
  mask: Bool[Array, 'batch responses length'],
  epsilon: float = 1e-8,
) -> Float[jax.Array, 'batch responses length']:
  """Normalizes all unmasked elements of the batch to mean 0 and variance 1.

  If all elements are equal, they become 0.
  """
  return _normalize(x, mask, None, epsilon, True)


def _normalize(x, mask, axis, epsilon, scale_by_std):
  """Centers `x` along `axis` (None for all axes), and optionally scales it."""
  x = _from_largest(x, mask, axis)
  count = jnp.maximum(jnp.sum(mask, axis=axis, keepdims=True), 1)
  mean = jnp.sum(x, axis=axis, keepdims=True) / count
  centred = jnp.where(mask, x - mean, 0.0)
  if not scale_by_std:
    return centred
  squares = jnp.sum(jnp.square(centred), axis=axis, keepdims=True)
  variance = jnp.maximum(squares / count, _LEAST_VARIANCE)
  return centred / (jnp.sqrt(variance) + epsilon)


def _from_largest(x, mask, axis):
  """Shifts the unmasked elements so that the largest is 0; 0 elsewhere.

  The mean of equal numbers may differ from them in the last digit, and
  dividing by their spread would turn that digit into a large advantage.
  """
  x = jnp.where(mask, x, 0.0)
  largest = jnp.max(
    x, axis=axis, keepdims=True, initial=-jnp.inf, where=jnp.asarray(mask)
  )
  # -inf if all elements are masked. NaN stays in x, so that it is not hidden.
  largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
  return jnp.where(mask, x - jax.lax.stop_gradient(largest), 0.0)
