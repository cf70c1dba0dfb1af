"""REINFORCE with a learned value baseline: the algorithm of the paper."""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import checks
from perlhf_jax.core import typing
from perlhf_jax.objectives import returns
from perlhf_jax.rl import aggregation as aggregation_lib
from perlhf_jax.rl import algorithm
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Reinforce:
  """REINFORCE for language models (paper section 2.2, arXiv:2309.00267 F).

  Z_t is the undiscounted sum of the rewards from token t on: (1 - β) · score at
  the last token, less β · k1 at every token. V_t is the value in the rollout.

    policy loss  Σ_t -log π(a_t) · (Z_t - V_t)
    value loss   Σ_t (Z_t - V_t)²

  Both are means over responses. Nothing is clipped. Each rollout gives one
  update.

  Attributes:
    value_coefficient: weight of the value loss.
    normalize_advantages: whether to normalise advantages to mean 0 and variance
      1 over the batch; the paper does not.
    aggregation: how the losses of tokens add up (`aggregation.Aggregation`);
      the paper's is `sum`.
    mask_truncated: whether responses that were cut off are left out of the
      loss.
  """

  value_coefficient: Annotated[float, checks.NotNegative] = 1.0
  normalize_advantages: bool = False
  aggregation: aggregation_lib.Name = 'sum'
  mask_truncated: bool = False

  needs_value: ClassVar[bool] = True
  min_samples: ClassVar[int] = 1
  epochs: ClassVar[int] = 1
  minibatches: ClassVar[int] = 1
  kl_estimator: ClassVar[str] = 'k1'

  def __post_init__(self):
    checks.check_fields(self)

  def targets(
    self,
    episodes: algorithm.Episodes,
    kl_beta: Float[typing.Array, ''] | float,
  ) -> algorithm.Targets:
    """Computes the returns Z_t and the advantages Z_t - V_t."""
    mask = episodes.mask
    kl = algorithm.token_kl(self.kl_estimator, episodes)
    rewards = returns.token_rewards(episodes.scores, kl, mask, kl_beta)
    to_go = returns.returns_to_go(rewards, mask)
    advantages = to_go - algorithm.without_padding(episodes.values, mask)
    if self.normalize_advantages:
      advantages = returns.whiten(advantages, mask)
    return jax.lax.stop_gradient(algorithm.Targets(advantages, to_go))

  def loss(
    self,
    outputs: algorithm.Outputs,
    episodes: algorithm.Episodes,
    targets: algorithm.Targets,
    kl_beta: Float[typing.Array, ''] | float,
  ) -> train_step.LossOutput:
    """Computes the sums of both losses."""
    del kl_beta  # In the targets already.
    outputs, episodes, targets = algorithm.without_padding(
      (outputs, episodes, targets), episodes.mask
    )
    over = aggregation_lib.of_episodes(
      episodes, self.aggregation, self.mask_truncated
    )
    policy_loss = -over.loss(outputs.logprobs * targets.advantages)
    value_loss = over.loss(jnp.square(targets.returns - outputs.values))
    deviation = algorithm.ratio_deviation(outputs, episodes)
    return train_step.LossOutput(
      loss_sum=policy_loss + self.value_coefficient * value_loss,
      weight_sum=over.weight_sum,
      metric_sums={
        'policy_loss': policy_loss,
        'value_loss': value_loss,
        'ratio_deviation': over.metric(deviation),
      },
    )
