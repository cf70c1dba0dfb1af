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

  The advantage of a response is its score's distance to the mean score of the
  prompt's responses, in standard deviations of theirs. The loss is the mean
  over the tokens of a response, then over responses, of

    (1 - β) · -min(ratio · A, clip(ratio, 1 ± clip_ratio) · A) + β · k3

  where k3 is between the current policy and the reference and is
  differentiated. The factor 1 - β is the paper's and not GRPO's.

  What β weighs depends on `scale_by_std`. With it, as GRPO has it, scores count
  in standard deviations of their group: they may be ten times as large, and
  the policy is held as near to the reference as before. In the other
  algorithms, and here without it, scores count as they are, so that with ten
  times as large ones the same β holds ten times less. So a β that was found
  with one of them is not one for the other. Without it, too, the score's part
  is smaller by (n - 1) / n, because the mean of n responses holds the
  response's own score.

  Attributes:
    clip_ratio: how far the ratio may move before a token stops to count.
    scale_by_std: whether to divide by the standard deviation; without it
      prompts on which responses differ more weigh more, and β weighs scores as
      it does in the other algorithms.
    epsilon: added to the standard deviation.
    epochs: passes over each rollout.
    minibatches: updates in a pass.
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
    """Computes the sum over responses of the loss.

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
