"""The device mesh, and the rules from logical axes to mesh axes.

Layers name logical axes (T5X's names); only this module knows the mesh axes.
`placement` moves arrays onto the mesh and off it.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing

MESH_AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')
# The compiler propagates shardings from the constraints in the models.
_AXIS_TYPES = (AxisType.Auto,) * 3

# Pairs of a logical axis and the mesh axes that split it. An array uses each
# mesh axis once: the first logical axis here that asks for it gets it. So
# activations use `fsdp` for `batch`.
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

_SPLIT_BY_TENSOR = ('vocab', 'mlp', 'heads', 'joined_kv')
_NOT_SPLIT = ('kv', 'length', 'layers', 'lora_rank', 'relpos_buckets')


@dataclasses.dataclass(frozen=True)
class LogicalMesh:
  """A device mesh, and the rules from logical axes to mesh axes.

  Attributes:
    mesh: mesh with axes `MESH_AXES`.
    rules: mesh axes that split each logical axis.
  """

  mesh: Mesh | AbstractMesh
  rules: Rules

  @property
  def shape(self) -> Mapping[str, int]:
    """Size of each mesh axis."""
    return self.mesh.shape


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """How models and batches are sharded; built by gin, with T5X's terms.

  Attributes:
    mesh_shape: sizes of (data, fsdp, tensor); one of them may be -1, which
      takes the remaining devices. `data` replicates parameters, `fsdp` shards
      both batch and parameters, `tensor` splits heads, hidden units and
      vocabulary. On several TPU slices, `data` must be a multiple of the number
      of slices.
    activation_partitioning_dims: 1, or 2 to split the activations between
      layers by `tensor` too, which costs communication and saves memory.
    parameter_partitioning_dims: 2, or 1 to split parameters by `tensor` only
      and replicate them over `fsdp`.
  """

  mesh_shape: Sequence[int] = (-1, 1, 1)
  activation_partitioning_dims: Annotated[int, checks.OneOf(1, 2)] = 1
  parameter_partitioning_dims: Annotated[int, checks.OneOf(1, 2)] = 2

  def __post_init__(self):
    checks.check_fields(self)

  def make_mesh(
    self, devices: Sequence[jax.Device] | None = None
  ) -> LogicalMesh:
    """Makes the mesh.

    With several TPU slices, each slice holds a part of `data`, the outermost
    axis. `fsdp` and `tensor`, which communicate in every layer, stay within a
    slice. The network between slices carries only the gradients of the
    trainable parameters, once per step.

    Args:
      devices: devices of the mesh, perhaps of another machine; None for all
        devices of this run.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or
        `data` cannot be spread over the slices.
    """
    devices = jax.devices() if devices is None else devices
    num_slices = _num_slices(devices)
    data, *inner = mesh_sizes(self.mesh_shape, len(devices), num_slices)
    # Without it, JAX refuses meshes that do not match the slice's topology.
    split = {'allow_split_physical_axes': True}
    if num_slices == 1:
      placed = mesh_utils.create_device_mesh((data, *inner), devices, **split)
    else:
      placed = mesh_utils.create_hybrid_device_mesh(
        (data // num_slices, *inner), (num_slices, 1, 1), devices, **split
      )
    mesh = Mesh(placed, MESH_AXES, axis_types=_AXIS_TYPES)
    return LogicalMesh(mesh, self._rules())

  def abstract_mesh(self, num_devices: int, num_slices: int = 1) -> LogicalMesh:
    """Makes a mesh without devices, for shapes and shardings.

    Args:
      num_devices: number of devices of the run.
      num_slices: number of TPU slices they form.

    Raises:
      ConfigError: as in `make_mesh`.
    """
    sizes = mesh_sizes(self.mesh_shape, num_devices, num_slices)
    mesh = AbstractMesh(sizes, MESH_AXES, axis_types=_AXIS_TYPES)
    return LogicalMesh(mesh, self._rules())

  def _rules(self) -> Rules:
    return standard_rules(
      self.activation_partitioning_dims, self.parameter_partitioning_dims
    )


# Every device holds the whole model and a shard of each batch.
DATA_PARALLEL = Partitioner()


def standard_rules(
  activation_partitioning_dims: int = 1, parameter_partitioning_dims: int = 2
) -> Rules:
  """Returns T5X's standard rules for our mesh.

  T5X has one mesh axis `data` in place of our `data` and `fsdp`, and calls our
  `tensor` axis `model`.

  Args:
    activation_partitioning_dims: 1 or 2; see `Partitioner`.
    parameter_partitioning_dims: 1 or 2.
  """
  rules = [('batch', BATCH_AXES)]
  rules += [(name, 'tensor') for name in _SPLIT_BY_TENSOR]
  # Activations already use `fsdp` for `batch`, and kernels use `tensor` for
  # their other axis. So the first rule splits only activations, and the second
  # only parameters.
  if activation_partitioning_dims == 2:
    rules.append(('embed', 'tensor'))
  rules.append(('embed', 'fsdp' if parameter_partitioning_dims == 2 else None))
  return (*rules, *((name, None) for name in _NOT_SPLIT))


def make_mesh(mesh_shape: Sequence[int] = (-1, 1, 1)) -> LogicalMesh:
  """Makes the mesh of all devices with the standard rules.

  Raises:
    ConfigError: as in `Partitioner.make_mesh`.
  """
  return Partitioner(mesh_shape).make_mesh()


def mesh_sizes(
  mesh_shape: Sequence[int], num_devices: int, num_slices: int = 1
) -> tuple[int, ...]:
  """Returns the sizes of the mesh axes.

  Args:
    mesh_shape: as in `Partitioner`; -1 takes the remaining devices.
    num_devices: number of devices of all slices.
    num_slices: number of TPU slices they form.

  Raises:
    ConfigError: there are not three sizes, they do not multiply to the number
      of devices, or `data` cannot be spread over the slices.
  """
  sizes = list(mesh_shape)
  if (
    len(sizes) != 3
    or sizes.count(-1) > 1
    or any(s < 1 and s != -1 for s in sizes)
  ):
    raise errors.ConfigError(
      f'MESH_SHAPE is {tuple(mesh_shape)}; give three sizes (data, fsdp, '
      'tensor), at most one of them -1.'
    )
  if -1 in sizes:
    rest = math.prod(s for s in sizes if s != -1)
    sizes[sizes.index(-1)] = num_devices // rest
  if math.prod(sizes) != num_devices:
    raise errors.ConfigError(
      f'MESH_SHAPE {tuple(mesh_shape)} (data, fsdp, tensor) does not multiply '
      f'to the number of devices, {num_devices}.'
    )
  if sizes[0] % num_slices:
    raise errors.ConfigError(
      f'MESH_SHAPE {tuple(mesh_shape)} (data, fsdp, tensor) cannot be spread '
      f'over {num_slices} slices of {num_devices // num_slices} devices: make '
      f'data a multiple of {num_slices}, so that fsdp and tensor stay within a '
      'slice.'
    )
  return tuple(sizes)


def _num_slices(devices: Sequence[jax.Device]) -> int:
  """Returns the number of TPU slices that devices form.

  Only TPUs are asked: JAX numbers GPU hosts by the same attribute.
  """
  if devices[0].platform != 'tpu':
    return 1
  return len({getattr(device, 'slice_index', 0) for device in devices})


@contextlib.contextmanager
def use_mesh(mesh: LogicalMesh):
  """Makes `mesh` and its rules current, for tracing and compiling."""
  with jax.set_mesh(mesh.mesh), nn.logical_axis_rules(mesh.rules):
    yield


def shardings_of(boxed: typing.PyTree, mesh: LogicalMesh) -> typing.PyTree:
  """Returns the sharding of every leaf of a boxed tree (arrays or shapes).

  Raises:
    ConfigError: a mesh axis does not divide the dimension that it splits.
  """
  specs = nn.get_partition_spec(boxed)
  shardings = nn.logical_to_mesh_sharding(specs, mesh.mesh, mesh.rules)
  shapes = tree_paths.flatten(nn.meta.unbox(boxed))
  for path, sharding in tree_paths.flatten(shardings).items():
    for size, axis in zip(shapes[path].shape, sharding.spec, strict=False):
      parts = math.prod(mesh.shape[a] for a in np.atleast_1d(axis) if a)
      if size % parts:
        raise errors.ConfigError(
          f'MESH_SHAPE splits a dimension of {path}, shape '
          f'{shapes[path].shape}, into {parts} parts, which does not divide '
          f'{size}. Choose a size of mesh axis {axis!r} that does.'
        )
  return shardings


def abstract_arrays(
  shapes: typing.PyTree, shardings: typing.PyTree
) -> typing.PyTree:
  """Returns `ShapeDtypeStruct`s with shardings, to restore or compile with."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def replicated(mesh: LogicalMesh) -> NamedSharding:
  """The sharding of arrays that every device holds whole."""
  return NamedSharding(mesh.mesh, PartitionSpec())


def batch_sharding(mesh: LogicalMesh) -> NamedSharding:
  """The sharding of arrays whose first axis is `batch`."""
  return NamedSharding(mesh.mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(
  batch_size: int,
  mesh: LogicalMesh,
  accumulation_steps: int = 1,
  minibatches: int = 1,
) -> None:
  """Refuses a batch size that the mesh does not divide.

  Args:
    batch_size: rows of a global batch.
    mesh: the mesh.
    accumulation_steps: number of gradient accumulation steps per update.
    minibatches: number of updates per batch.

  Raises:
    ConfigError: the shards, accumulation steps and minibatches do not divide
      `batch_size`.
  """
  shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  factor = shards * accumulation_steps * minibatches
  if batch_size < 1 or batch_size % factor:
    times = f' times {minibatches} minibatches' if minibatches > 1 else ''
    raise errors.ConfigError(
      f'BATCH_SIZE {batch_size} is not divisible by {shards} batch shard(s) '
      f'(data x fsdp of MESH_SHAPE) times {accumulation_steps} accumulation '
      f'step(s){times}; use a multiple of {factor}.'
    )


def check_parts(batch_size: int, mesh: LogicalMesh, parts: int) -> None:
  """Refuses a number of parts that does not divide each device's rows.

  Args:
    batch_size: rows of a global batch.
    mesh: the mesh.
    parts: number of parts in which a batch is sampled.

  Raises:
    ConfigError: the parts do not divide a device's rows.
  """
  shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if batch_size % (shards * parts):
    raise errors.ConfigError(
      f'ROLLOUT_PARTS {parts} does not divide BATCH_SIZE {batch_size} on '
      f'{shards} batch shard(s) (data x fsdp of MESH_SHAPE): each holds '
      f'{batch_size // shards} prompt(s). Make BATCH_SIZE a multiple of '
      f'{shards * parts}, or ROLLOUT_PARTS smaller.'
    )
