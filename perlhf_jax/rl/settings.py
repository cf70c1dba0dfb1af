"""How a step of reinforcement learning samples and learns."""

import dataclasses

from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import kl_controller
from perlhf_jax.rl import rewards
from perlhf_jax.sampling import sampler


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is the same at every step, beside models and optimizers.

  Attributes:
    algorithm: the loss, and what it learns towards.
    sampling: how to sample.
    kl_beta: β at first.
    shaping: what happens to scores before they are rewards.
    controller: adapts β to a target KL; None to keep it.
    seed: of sampling and of the order of minibatches.
    accumulation_steps: parts in which a minibatch is differentiated.
  """

  algorithm: algorithm_lib.Algorithm
  sampling: sampler.SamplingConfig
  kl_beta: float
  shaping: rewards.RewardShaping = dataclasses.field(
    default_factory=rewards.RewardShaping
  )
  controller: kl_controller.AdaptiveKl | None = None
  seed: int = 0
  accumulation_steps: int = 1

  @property
  def updates(self) -> int:
    """Updates that are made from a rollout."""
    return self.algorithm.epochs * self.algorithm.minibatches

  @property
  def has_one_update(self) -> bool:
    """Whether the whole rollout is differentiated at once.

    The values that the update computes are then those of the rollout, and no
    pass of the value model comes before.
    """
    return self.updates * self.accumulation_steps == 1
