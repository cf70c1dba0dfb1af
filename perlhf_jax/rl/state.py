"""The state of reinforcement learning."""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax.numpy as jnp
import optax

from perlhf_jax.core import typing
from perlhf_jax.rl import rewards
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_state


@struct.dataclass
class PolicyState:
  """The state from which a checkpoint resumes a run exactly.

  The step also determines the position in the prompts and the randomness of
  sampling.

  Attributes:
    step: int32 scalar, rollouts learned from so far.
    trainable: `{'policy': …}` and, with a value model, `{'value': …}`; each is
      `{'lora': …}` or `{'params': …}`, and the value's also has `'heads'`.
    opt_state: the optimizer's state over `trainable`.
    kl_beta: float32 scalar, the current β of the objective.
    reward_moments: running statistics of the scores.
    skipped: int32 scalar, steps in which an update was skipped because a loss
      or a gradient was not finite.
    skipped_in_a_row: int32 scalar, how many of the latest steps in a row were
      skipped.
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


def shardings(
  trainable: Mapping[str, Any],
  trainable_shardings: Mapping[str, Any],
  by_role: Mapping[str, optax.GradientTransformation],
  mesh: partitioning.LogicalMesh,
) -> PolicyState:
  """Returns the sharding of every leaf of the state.

  Args:
    trainable: arrays or shapes of each role.
    trainable_shardings: the shardings of `trainable`.
    by_role: the optimizer of each role.
    mesh: the mesh.
  """
  whole = partitioning.replicated(mesh)
  return PolicyState(
    step=whole,
    trainable=trainable_shardings,
    opt_state={
      role: train_state.state_shardings(
        trainable_shardings[role], trainable[role], optimizer, mesh
      ).opt_state
      for role, optimizer in by_role.items()
    },
    kl_beta=whole,
    reward_moments=rewards.Moments(whole, whole, whole),
    skipped=whole,
    skipped_in_a_row=whole,
  )
