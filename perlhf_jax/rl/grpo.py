"""GRPO: clipped updates with the prompt's own responses as the baseline."""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from perlhf_jax.core import checks
from perlhf_jax.core import typing
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.objectives import returns
from perlhf_jax.rl import aggregation as aggregation_lib
from perlhf_jax.rl import algorithm
from perlhf_jax.rl import clipping
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Grpo:
  """Group relative policy optimization, and its relatives by settings.

  The defaults are the GRPO of arXiv:2402.03300, equation 3. The advantage A of
  a response is its score less the mean score of the prompt's responses, divided
  by the standard deviation of their scores. The loss is the mean over the
  tokens of a response (`sequence`), then over responses, of

    (1 - β) · -min(ratio · A, clip(ratio, 1 ± clip_ratio) · A) + β · k3

  where each token has its own ratio, both bounds are the same, and k3 is the KL
  estimate between the current policy and the reference, and is differentiated.
  Responses that were cut off count. The factor 1 - β is from the paper
  (arXiv:2403.10704), not from GRPO.

  Other algorithms differ in a few settings, which their gin files set:

    gin/rl/dr_grpo.gin       Dr. GRPO, arXiv:2503.20783
    gin/rl/gspo.gin          GSPO, arXiv:2507.18071
    gin/rl/cispo.gin         CISPO, arXiv:2506.13585
    gin/rl/reinforce_pp.gin  REINFORCE++ with baseline, arXiv:2501.03262

  The `clip_ratio_high` and `mask_truncated` of DAPO (arXiv:2503.14476) go with
  its aggregation `token`.

  The effect of β depends on `normalize`. With it, as in GRPO, the scale of the
  scores does not matter: with scores ten times as large, the same β keeps the
  policy equally near to the reference. With None, and in the other algorithms,
  the same β then holds the policy ten times less. So a β tuned with one setting
  does not fit the other. With None, the score's part is also smaller by
  (n - 1) / n, because the mean of n responses includes the response's own
  score.

  Attributes:
    clip_ratio: how far the ratio may fall below 1, and rise above it, before a
      token has no gradient.
    clip_ratio_high: how far the ratio may rise above 1; None for `clip_ratio`.
    ratio: `token`, or `sequence` for one ratio per response, the geometric mean
      of the ratios of its tokens (GSPO).
    surrogate: `clip` is the loss above. With `cispo` the clipped ratio is a
      constant weight of -A · log π, so that clipped tokens have a gradient too.
    aggregation: how the losses of tokens add up (`aggregation.Aggregation`).
    normalize: what divides the advantages: `group`, the standard deviation of
      the prompt's scores; `batch`, of all scores of the rollout, so that easy
      prompts do not weigh more (arXiv:2508.08221); `whiten` normalises the
      advantages of all tokens of the rollout to mean 0 and variance 1
      (REINFORCE++); None, nothing, so that β weighs scores as in the other
      algorithms.
    epsilon: added to the standard deviations of `group` and `batch`.
    kl_estimator: the KL in the loss: `k3`, or `k2`, whose gradient is that of
      KL(policy ‖ reference).
    mask_truncated: whether responses that were cut off are left out of the
      loss; they count for the advantages of the others.
    epochs: passes over each rollout.
    minibatches: updates per pass.
  """

  clip_ratio: Annotated[float, checks.Positive] = 0.2
  clip_ratio_high: Annotated[float | None, checks.Positive] = None
  ratio: Annotated[str, checks.OneOf('token', 'sequence')] = 'token'
  surrogate: Annotated[str, checks.OneOf('clip', 'cispo')] = 'clip'
  aggregation: aggregation_lib.Name = 'sequence'
  normalize: Annotated[str | None, checks.OneOf('group', 'batch', 'whiten')] = (
    'group'
  )
  epsilon: Annotated[float, checks.Positive] = 1e-4
  kl_estimator: Annotated[str, checks.OneOf('k2', 'k3')] = 'k3'
  mask_truncated: bool = False
  epochs: Annotated[int, checks.AtLeastOne] = 1
  minibatches: Annotated[int, checks.AtLeastOne] = 1

  needs_value: ClassVar[bool] = False
  min_samples: ClassVar[int] = 2

  def __post_init__(self):
    checks.check_fields(self)

  def targets(
    self,
    episodes: algorithm.Episodes,
    kl_beta: Float[typing.Array, ''] | float,
  ) -> algorithm.Targets:
    """Computes the advantage of each response, the same at all its tokens."""
    del kl_beta  # In the loss.
    mask = episodes.mask
    valid = algorithm.has_tokens(mask)
    scores = jnp.asarray(episodes.scores)
    if self.normalize == 'batch':
      # Centring by prompt afterwards takes away the mean of the batch.
      scores = returns.whiten(
        scores[..., None], valid[..., None], self.epsilon
      )[..., 0]
    advantages = returns.group_normalize(
      scores, valid, self.epsilon, self.normalize == 'group'
    )
    advantages = jnp.where(mask, advantages[..., None], 0.0)
    if self.normalize == 'whiten':
      advantages = returns.whiten(advantages, mask)
    return jax.lax.stop_gradient(algorithm.Targets(advantages, None))

  def loss(
    self,
    outputs: algorithm.Outputs,
    episodes: algorithm.Episodes,
    targets: algorithm.Targets,
    kl_beta: Float[typing.Array, ''] | float,
  ) -> train_step.LossOutput:
    """Computes the sum of the loss.

    The metric `policy_loss` is the score's part before the factor 1 - β, and
    `kl_loss` is the KL's before the factor β.
    """
    outputs, episodes, targets = algorithm.without_padding(
      (outputs, episodes, targets), episodes.mask
    )
    over = aggregation_lib.of_episodes(
      episodes, self.aggregation, self.mask_truncated
    )
    clipped = self._surrogate(
      outputs.logprobs, episodes.logprobs, targets.advantages, episodes.mask
    )
    kl = kl_lib.ESTIMATORS[self.kl_estimator](
      outputs.logprobs, episodes.ref_logprobs
    )
    policy_loss, kl_loss = over.loss(clipped.loss), over.loss(kl)
    deviation = algorithm.ratio_deviation(outputs, episodes)
    return train_step.LossOutput(
      loss_sum=(1.0 - kl_beta) * policy_loss + kl_beta * kl_loss,
      weight_sum=over.weight_sum,
      metric_sums={
        'policy_loss': policy_loss,
        'kl_loss': kl_loss,
        'ratio_deviation': over.metric(deviation),
        'clip_fraction': over.metric(clipped.is_clipped),
      },
    )

  def _surrogate(
    self,
    logprobs: Float[typing.Array, 'batch responses length'],
    old_logprobs: Float[typing.Array, 'batch responses length'],
    advantages: Float[typing.Array, 'batch responses length'],
    mask: Bool[typing.Array, 'batch responses length'],
  ) -> clipping.ClippedLoss:
    """Computes the score's part of the loss of each token."""
    if self.ratio == 'sequence':
      ratio = clipping.sequence_ratio(logprobs, old_logprobs, mask)
    else:
      ratio = kl_lib.probability_ratio(logprobs, old_logprobs)
    bounds = self.clip_ratio, self.clip_ratio_high
    if self.surrogate == 'cispo':
      return clipping.weighted_log_loss(logprobs, ratio, advantages, *bounds)
    return clipping.policy_loss(ratio, advantages, *bounds)
