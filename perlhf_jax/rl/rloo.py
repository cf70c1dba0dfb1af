"""RLOO: the baseline is the mean of the prompt's other responses."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import checks
from perlhf_jax.core import typing
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.objectives import returns
from perlhf_jax.rl import aggregation as aggregation_lib
from perlhf_jax.rl import algorithm
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Rloo:
  """REINFORCE leave-one-out (arXiv:2402.14740).

  A response is one action. Its return is R = (1 - β) · score - β · Σ_t k1. Its
  advantage A is R less the mean R of the prompt's other responses. The loss is
  the mean over responses of -A · Σ_t log π(a_t). There is no value model.

  Attributes:
    aggregation: how the losses of tokens add up (`aggregation.Aggregation`);
      RLOO's is `sum`.
    mask_truncated: whether responses that were cut off are left out of the
      loss; they count for the baseline of the others.
  """

  aggregation: aggregation_lib.Name = 'sum'
  mask_truncated: bool = False

  needs_value: ClassVar[bool] = False
  min_samples: ClassVar[int] = 2
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
    """Computes the advantage of each response, the same at all its tokens."""
    mask = episodes.mask
    kl = algorithm.token_kl(self.kl_estimator, episodes)
    totals = (1.0 - kl_beta) * jnp.asarray(
      episodes.scores
    ) - kl_beta * kl_lib.sequence_sums(kl, mask)
    advantages = returns.leave_one_out(totals, algorithm.has_tokens(mask))
    advantages = jnp.where(mask, advantages[..., None], 0.0)
    return jax.lax.stop_gradient(algorithm.Targets(advantages, None))

  def loss(
    self,
    outputs: algorithm.Outputs,
    episodes: algorithm.Episodes,
    targets: algorithm.Targets,
    kl_beta: Float[typing.Array, ''] | float,
  ) -> train_step.LossOutput:
    """Computes the sum of the loss."""
    del kl_beta  # In the targets already.
    outputs, episodes, targets = algorithm.without_padding(
      (outputs, episodes, targets), episodes.mask
    )
    over = aggregation_lib.of_episodes(
      episodes, self.aggregation, self.mask_truncated
    )
    policy_loss = -over.loss(outputs.logprobs * targets.advantages)
    deviation = algorithm.ratio_deviation(outputs, episodes)
    return train_step.LossOutput(
      loss_sum=policy_loss,
      weight_sum=over.weight_sum,
      metric_sums={
        'policy_loss': policy_loss,
        'ratio_deviation': over.metric(deviation),
      },
    )
