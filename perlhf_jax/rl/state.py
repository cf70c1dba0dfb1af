"""What reinforcement learning changes from step to step."""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax.numpy as jnp
import optax

from perlhf_jax.core import typing
from perlhf_jax.rl import rewards


@struct.dataclass
class PolicyState:
  """Everything a checkpoint must hold to go on exactly.

  The step also gives the position among the prompts and the randomness of
  sampling.

  Attributes:
    step: int32 scalar, rollouts learned from so far.
    trainable: `{'policy': …}` and, where there is a baseline, `{'value': …}`;
      each `{'lora': …}` or `{'params': …}`, and the value's `'heads'`.
    opt_state: the optimizer's state over `trainable`.
    kl_beta: float32 scalar, β of the objective now.
    reward_moments: running statistics of the scores.
    skipped: int32 scalar, steps in which an update was skipped because a loss
      or a gradient was not finite.
    skipped_in_a_row: int32 scalar, how many of them were the last ones.
  """

  step: typing.PyTree
  trainable: Mapping[str, Any]
  opt_state: Any
  kl_beta: typing.PyTree
  reward_moments: Any
  skipped: typing.PyTree
  skipped_in_a_row: typing.PyTree


def create(
  trainable: Mapping[str, Any],
  optimizer: optax.GradientTransformation,
  kl_beta: float,
) -> PolicyState:
  """Returns the state before the first step."""
  return PolicyState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    opt_state=optimizer.init(trainable),
    kl_beta=jnp.asarray(kl_beta, jnp.float32),
    reward_moments=rewards.initial_moments(),
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
  )
