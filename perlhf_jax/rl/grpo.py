"""GRPO: clipped updates with the prompt's own responses as the baseline."""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import checks
from perlhf_jax.core import typing
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.objectives import returns
from perlhf_jax.rl import algorithm
from perlhf_jax.rl import clipping
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Grpo:
  """Group relative policy optimization (arXiv:2402.03300, equation 3).

  The advantage A of a response is its score less the mean score of the prompt's
  responses, divided by the standard deviation of their scores. The loss is the
  mean over the tokens of a response, then over responses, of

    (1 - β) · -min(ratio · A, clip(ratio, 1 ± clip_ratio) · A) + β · k3

  where k3 is the KL estimate between the current policy and the reference, and
  is differentiated. The factor 1 - β is from the paper, not from GRPO.

  The effect of β depends on `scale_by_std`. With it, as in GRPO, the scale of
  the scores does not matter: with scores ten times as large, the same β keeps
  the policy equally near to the reference. Without it, and in the other
  algorithms, the same β then holds the policy ten times less. So a β tuned with
  one setting does not fit the other. Without `scale_by_std`, the score's part
  is also smaller by (n - 1) / n, because the mean of n responses includes the
  response's own score.

  Attributes:
    clip_ratio: how far the ratio may move before a token has no gradient.
    scale_by_std: whether to divide by the standard deviation; without it,
      prompts whose responses differ more weigh more, and β weighs scores as in
      the other algorithms.
    epsilon: added to the standard deviation.
    epochs: passes over each rollout.
    minibatches: updates per pass.
  """

  clip_ratio: Annotated[float, checks.Positive] = 0.2
  scale_by_std: bool = True
  epsilon: Annotated[float, checks.Positive] = 1e-4
  epochs: Annotated[int, checks.AtLeastOne] = 1
  minibatches: Annotated[int, checks.AtLeastOne] = 1

  needs_value: ClassVar[bool] = False
  min_samples: ClassVar[int] = 2
  kl_estimator: ClassVar[str] = 'k3'

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
    advantages = returns.group_normalize(
      episodes.scores,
      algorithm.has_tokens(mask),
      self.epsilon,
      self.scale_by_std,
    )
    advantages = jnp.where(mask, advantages[..., None], 0.0)
    return jax.lax.stop_gradient(algorithm.Targets(advantages, None))

  def loss(
    self,
    outputs: algorithm.Outputs,
    episodes: algorithm.Episodes,
    targets: algorithm.Targets,
    kl_beta: Float[typing.Array, ''] | float,
  ) -> train_step.LossOutput:
    """Computes the sum of the loss over responses.

    The metric `policy_loss` is the clipped part before the factor 1 - β, and
    `kl_loss` is k3 before the factor β.
    """
    mask = episodes.mask
    outputs, episodes, targets = algorithm.without_padding(
      (outputs, episodes, targets), mask
    )
    clipped = clipping.policy_loss(
      outputs.logprobs, episodes.logprobs, targets.advantages, self.clip_ratio
    )
    kl = kl_lib.k3(outputs.logprobs, episodes.ref_logprobs)
    deviation = algorithm.ratio_deviation(outputs, episodes)

    def total(x):
      return algorithm.sum_of_token_means(x, mask)

    policy_loss, kl_loss = total(clipped.loss), total(kl)
    return train_step.LossOutput(
      loss_sum=(1.0 - kl_beta) * policy_loss + kl_beta * kl_loss,
      weight_sum=algorithm.num_responses(mask),
      metric_sums={
        'policy_loss': policy_loss,
        'kl_loss': kl_loss,
        'ratio_deviation': total(deviation),
        'clip_fraction': total(clipped.is_clipped),
      },
    )
