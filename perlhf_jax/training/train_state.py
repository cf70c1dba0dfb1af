"""The state of training, and its shardings."""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import optax

from perlhf_jax.core import typing
from perlhf_jax.training import partitioning


@struct.dataclass
class TrainState:
  """Everything that a checkpoint needs for an exact resume.

  The step also determines the position in the data and the dropout randomness.

  Attributes:
    step: int32 scalar, number of updates so far.
    trainable: `{'lora': …}` or `{'params': …}`, and `'heads'` if there are any.
      The state does not contain frozen weights.
    opt_state: the optimizer's state for `trainable`.
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
  mesh: partitioning.LogicalMesh,
) -> TrainState:
  """Returns the sharding of every leaf of the state.

  Optimizer leaves of a parameter's shape are sharded like the parameter. Leaves
  without some of its axes (Adafactor's rows and columns) are sharded like the
  axes they have. Other leaves are scalars, which are replicated.

  Args:
    trainable_shardings: shardings of `trainable`.
    trainable: arrays or shapes.
    optimizer: the optimizer.
    mesh: the mesh.
  """
  whole = partitioning.replicated(mesh)
  abstract = jax.eval_shape(optimizer.init, trainable)
  opt_state = optax.tree_utils.tree_map_params(
    optimizer,
    lambda leaf, sharding, parameter: _sharding_of_part(
      leaf.shape, parameter.shape, sharding
    ),
    abstract,
    trainable_shardings,
    trainable,
    transform_non_params=lambda _: whole,
  )
  return TrainState(whole, trainable_shardings, opt_state)


def _sharding_of_part(shape, parameter_shape, sharding):
  """Returns the sharding of a leaf with all or some of a parameter's axes."""
  spec = [*sharding.spec, *[None] * len(parameter_shape)]
  rest, kept = list(shape), []
  for size, axis in zip(parameter_shape, spec, strict=False):
    if rest and rest[0] == size:
      kept.append(axis)
      rest.pop(0)
  # A leaf with other axes, such as a placeholder, is replicated.
  return NamedSharding(sharding.mesh, PartitionSpec(*([] if rest else kept)))
