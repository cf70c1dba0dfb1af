"""How a step of reinforcement learning samples and learns."""

import dataclasses
from typing import Annotated

from perlhf_jax.core import checks
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import kl_controller
from perlhf_jax.rl import rewards
from perlhf_jax.sampling import sampler

ImportanceCap = Annotated[float | None, checks.Range(least=1)]


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of every step, except models and optimizers.

  Attributes:
    algorithm: computes the targets and the loss.
    sampling: how to sample.
    kl_beta: the initial β.
    shaping: how to shape scores.
    controller: adapts β to a target KL; None keeps β fixed.
    seed: seed of sampling and of the order of minibatches.
    accumulation_steps: number of parts of a minibatch that are differentiated
      one after the other.
    importance_cap: the largest importance weight of a token, where sampler and
      trainer differ (`rl/importance.py`); None takes the sampler's
      log-probabilities as the trainer's, without weights.
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
  importance_cap: ImportanceCap = None

  def __post_init__(self):
    checks.check_fields(self)

  @property
  def updates(self) -> int:
    """The number of updates per rollout."""
    return self.algorithm.epochs * self.algorithm.minibatches

  @property
  def has_one_update(self) -> bool:
    """Whether each rollout gives one update, differentiated in one part.

    The update then computes the values of the rollout itself, without an
    earlier pass of the value model.
    """
    return self.updates * self.accumulation_steps == 1
