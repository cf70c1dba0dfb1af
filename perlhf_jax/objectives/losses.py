"""Losses of supervised tuning and of reward modelling.

All losses are computed in float32 and are stable for scores and logits of any
finite size. Functions return sums or losses per example, never means: only the
caller knows the divisor when a batch is padded, accumulated or sharded.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from perlhf_jax.core.typing import Array


class TokenLosses(NamedTuple):
  """Unweighted losses of each token of a batch; [batch, length].

  Attributes:
    loss: float32, cross-entropy in nats, smoothing and z-loss included.
    z_loss: float32, the z-loss part of `loss`.
    is_correct: bool, whether the target has the highest logit.
  """

  loss: Float[Array, 'batch length']
  z_loss: Float[Array, 'batch length']
  is_correct: Bool[Array, 'batch length']


class TokenLoss(NamedTuple):
  """Weighted sums over the tokens of a batch; float32 scalars.

  Divide by `weight_sum` for a mean per token. Sums of several batches may be
  added field by field.

  Attributes:
    loss_sum: the sum of `TokenLosses.loss`.
    z_loss_sum: the z-loss part of `loss_sum`.
    correct_sum: weighted count of tokens whose target has the highest logit.
    weight_sum: the sum of the weights.
  """

  loss_sum: Float[jax.Array, '']
  z_loss_sum: Float[jax.Array, '']
  correct_sum: Float[jax.Array, '']
  weight_sum: Float[jax.Array, '']


def token_logprobs(
  logits: Float[Array, 'batch length vocab'],
  targets: Int[Array, 'batch length'],
) -> Float[jax.Array, 'batch length']:
  """Returns the log-probability of each target token.

  Args:
    logits: [batch, length, vocab].
    targets: [batch, length] token ids.

  Returns:
    float32 [batch, length], in nats; unmasked.
  """
  logits = jnp.asarray(logits, jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  return _pick(logits, targets) - log_z


def token_losses(
  logits: Float[Array, 'batch length vocab'],
  targets: Int[Array, 'batch length'],
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> TokenLosses:
  """Computes T5X's cross-entropy of each token.

  With label smoothing `a`, the target token has probability 1 - a and the other
  tokens share a evenly. The entropy of that distribution is subtracted, so that
  a perfect prediction has loss 0. The z-loss adds `z_loss * log(Z)^2`, where Z
  is the softmax's normalizer; it keeps logits from drifting.

  Args:
    logits: [batch, length, vocab].
    targets: [batch, length] token ids.
    label_smoothing: a, in [0, 1).
    z_loss: coefficient of the z-loss; T5X pre-trains with 1e-4.

  Returns:
    The losses of all tokens, padding included.
  """
  logits = jnp.asarray(logits, jnp.float32)
  vocab_size = logits.shape[-1]
  log_z = jax.nn.logsumexp(logits, axis=-1)
  target_logprobs = _pick(logits, targets) - log_z
  loss = -target_logprobs
  if label_smoothing:
    on_target = 1.0 - label_smoothing
    on_other = label_smoothing / (vocab_size - 1)
    other_logprobs = (
      jnp.sum(logits, axis=-1) - vocab_size * log_z - target_logprobs
    )
    entropy = -(
      on_target * math.log(on_target)
      + (vocab_size - 1) * on_other * math.log(on_other)
    )
    loss = -(on_target * target_logprobs + on_other * other_logprobs) - entropy
  z_losses = z_loss * jnp.square(log_z)
  correct = jnp.argmax(logits, axis=-1) == targets
  return TokenLosses(loss + z_losses, z_losses, correct)


def weighted_sums(
  losses: TokenLosses, weights: Float[Array, 'batch length']
) -> TokenLoss:
  """Sums the losses of a batch.

  Args:
    losses: output of `token_losses`.
    weights: [batch, length] weight of each token's loss; 0 on padding.

  Returns:
    The sums over all tokens.
  """
  # A weight of 0 must hide even an infinite loss on padding.
  counts = weights != 0
  return TokenLoss(
    loss_sum=jnp.sum(jnp.where(counts, losses.loss, 0.0) * weights),
    z_loss_sum=jnp.sum(jnp.where(counts, losses.z_loss, 0.0) * weights),
    correct_sum=jnp.sum(losses.is_correct * weights),
    weight_sum=jnp.sum(jnp.asarray(weights, jnp.float32)),
  )


def pairwise_loss(
  chosen_scores: Float[Array, ' batch'],
  rejected_scores: Float[Array, ' batch'],
  margins: Float[Array, ' batch'] | None = None,
  centering: float = 0.0,
) -> Float[jax.Array, ' batch']:
  """Computes the Bradley-Terry loss of preference pairs (paper section 2.1).

  -log σ(s_chosen - s_rejected - margin) + centering · (s_chosen + s_rejected)²

  The first term does not change if all scores shift by the same offset; the
  centering term keeps that offset near zero.

  Args:
    chosen_scores: [batch] scores of the preferred responses.
    rejected_scores: [batch] scores of the other responses.
    margins: [batch] by how much the chosen score should lead; 0 by default.
    centering: coefficient of the centering term; 0 omits it.

  Returns:
    float32 [batch], in nats.
  """
  chosen_scores = jnp.asarray(chosen_scores, jnp.float32)
  rejected_scores = jnp.asarray(rejected_scores, jnp.float32)
  lead = chosen_scores - rejected_scores
  if margins is not None:
    lead = lead - margins
  loss = -jax.nn.log_sigmoid(lead)
  if centering:
    loss = loss + centering * jnp.square(chosen_scores + rejected_scores)
  return loss


def pointwise_loss(
  scores: Float[Array, ' batch'], labels: Float[Array, ' batch']
) -> Float[jax.Array, ' batch']:
  """Computes the binary cross-entropy of scores taken as logits.

  -(p · log σ(s) + (1 - p) · log(1 - σ(s))), where 1 - σ(s) = σ(-s)

  The paper (appendix A.1.2) prints the second term as log σ(1 - s). We take
  that for a misprint: σ(s) and σ(1 - s) do not sum to 1, so it is not a
  likelihood.

  Args:
    scores: [batch] logits of "this response is good".
    labels: [batch] 1 for good, 0 for bad; values between are soft labels.

  Returns:
    float32 [batch], in nats.
  """
  scores = jnp.asarray(scores, jnp.float32)
  return -(
    labels * jax.nn.log_sigmoid(scores)
    + (1.0 - labels) * jax.nn.log_sigmoid(-scores)
  )


def _pick(
  logits: Float[Array, 'batch length vocab'],
  targets: Int[Array, 'batch length'],
) -> Float[jax.Array, 'batch length']:
  """Picks each target's own logit."""
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  return picked.squeeze(axis=-1)
