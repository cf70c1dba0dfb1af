"""What training changes, and how it lies on the mesh."""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from perlhf_jax.core import typing
from perlhf_jax.training import partitioning


@struct.dataclass
class TrainState:
  """Everything a checkpoint must hold to go on exactly.

  The step also gives the position in the data and the dropout randomness.

  Attributes:
    step: int32 scalar, updates made so far.
    trainable: `{'lora': …}` or `{'params': …}`, and `'heads'` where there are
      any. Frozen weights are no part of the state.
    opt_state: the optimizer's state over `trainable`.
  """

  step: typing.PyTree
  trainable: Mapping[str, Any]
  opt_state: Any


def create(
  trainable: Mapping[str, Any], optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    opt_state=optimizer.init(trainable),
  )


def state_shardings(
  trainable_shardings: Mapping[str, Any],
  trainable: Mapping[str, Any],
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """Returns the sharding of every leaf of the state.

  Optimizer leaves of a parameter's shape lie as the parameter does; others
  (Adafactor's rows and columns, counters) are small and are replicated.

  Args:
    trainable_shardings: of `trainable`.
    trainable: arrays or shapes.
    optimizer: the optimizer.
    mesh: the mesh.
  """
  whole = partitioning.replicated(mesh)
  abstract = jax.eval_shape(optimizer.init, trainable)
  opt_state = optax.tree_utils.tree_map_params(
    optimizer,
    lambda leaf, sharding, parameter: (
      sharding if leaf.shape == parameter.shape else whole
    ),
    abstract,
    trainable_shardings,
    trainable,
    transform_non_params=lambda _: whole,
  )
  return TrainState(whole, trainable_shardings, opt_state)
