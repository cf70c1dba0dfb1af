"""PPO: several clipped updates from each rollout."""

import dataclasses
from typing import Annotated, ClassVar

import jax
from jaxtyping import Float

from perlhf_jax.core import checks
from perlhf_jax.core import typing
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.objectives import returns
from perlhf_jax.rl import aggregation as aggregation_lib
from perlhf_jax.rl import algorithm
from perlhf_jax.rl import clipping
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Ppo:
  """Proximal policy optimization (arXiv:1707.06347).

  Rewards are (1 - β) · score at the last token less β · k1 at every token.
  Advantages are generalized advantage estimates, normalised to mean 0 and
  variance 1 over the batch of a rollout. Value targets are estimates plus
  values.

  Attributes:
    clip_ratio: how far the ratio of a token may move from 1.
    clip_ratio_high: how far it may move above 1; None for `clip_ratio`.
    value_clip: how far a value may move from the rollout's value; None does not
      clip.
    value_coefficient: weight of the value loss.
    gamma: discount of rewards.
    gae_lambda: λ of the advantage estimates.
    aggregation: how the losses of tokens add up (`aggregation.Aggregation`);
      usually `token`.
    mask_truncated: whether responses that were cut off are left out of the
      loss.
    epochs: passes over each rollout.
    minibatches: updates per pass.
  """

  clip_ratio: Annotated[float, checks.Positive] = 0.2
  clip_ratio_high: Annotated[float | None, checks.Positive] = None
  value_clip: Annotated[float | None, checks.Positive] = 0.2
  value_coefficient: Annotated[float, checks.NotNegative] = 0.5
  gamma: Annotated[float, checks.Fraction] = 1.0
  gae_lambda: Annotated[float, checks.Fraction] = 0.95
  aggregation: aggregation_lib.Name = 'token'
  mask_truncated: bool = False
  epochs: Annotated[int, checks.AtLeastOne] = 4
  minibatches: Annotated[int, checks.AtLeastOne] = 1

  needs_value: ClassVar[bool] = True
  min_samples: ClassVar[int] = 1
  kl_estimator: ClassVar[str] = 'k1'

  def __post_init__(self):
    checks.check_fields(self)

  def targets(
    self,
    episodes: algorithm.Episodes,
    kl_beta: Float[typing.Array, ''] | float,
  ) -> algorithm.Targets:
    """Computes whitened advantages and value targets."""
    mask = episodes.mask
    kl = algorithm.token_kl(self.kl_estimator, episodes)
    rewards = returns.token_rewards(episodes.scores, kl, mask, kl_beta)
    values = algorithm.without_padding(episodes.values, mask)
    advantages = returns.gae(rewards, values, mask, self.gamma, self.gae_lambda)
    return jax.lax.stop_gradient(
      algorithm.Targets(returns.whiten(advantages, mask), advantages + values)
    )

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
    clipped = clipping.policy_loss(
      kl_lib.probability_ratio(outputs.logprobs, episodes.logprobs),
      targets.advantages,
      self.clip_ratio,
      self.clip_ratio_high,
    )
    policy_loss = over.loss(clipped.loss)
    value_loss = over.loss(
      clipping.value_loss(
        outputs.values, episodes.values, targets.returns, self.value_clip
      )
    )
    deviation = algorithm.ratio_deviation(outputs, episodes)
    return train_step.LossOutput(
      loss_sum=policy_loss + self.value_coefficient * value_loss,
      weight_sum=over.weight_sum,
      metric_sums={
        'policy_loss': policy_loss,
        'value_loss': value_loss,
        'ratio_deviation': over.metric(deviation),
        'clip_fraction': over.metric(clipped.is_clipped),
      },
    )
