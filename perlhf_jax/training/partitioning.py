"""The device mesh, and one table from logical axes to mesh axes.

Layers name logical axes (T5X's names); only this file knows the mesh. What is
moved onto it and off it again is in `placement`.
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

# A logical axis and the mesh axes that split it. An array uses a mesh axis
# once: of two logical axes that ask for it, the one that comes first here gets
# it. So activations give `fsdp` to `batch`.
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

_SPLIT_BY_TENSOR = ('vocab', 'mlp', 'heads', 'joined_kv')
_NOT_SPLIT = ('kv', 'length', 'layers', 'lora_rank', 'relpos_buckets')


@dataclasses.dataclass(frozen=True)
class LogicalMesh:
  """A mesh of devices, and the rules from logical axes to its axes.

  Attributes:
    mesh: axes `MESH_AXES`.
    rules: what splits which logical axis.
  """

  mesh: Mesh | AbstractMesh
  rules: Rules

  @property
  def shape(self) -> Mapping[str, int]:
    """Size of each mesh axis."""
    return self.mesh.shape


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """How models and batches are split; gin builds it, with T5X's terms.

  Attributes:
    mesh_shape: sizes of (data, fsdp, tensor); one of them may be -1 and takes
      the devices that the others leave. `data` replicates parameters, `fsdp`
      shards both batch and parameters, `tensor` splits heads, hidden units
      and vocabulary. On several TPU slices `data` is a multiple of their
      number.
    activation_partitioning_dims: 1, or 2 to split the activations between
      layers by `tensor` too, which costs communication and saves memory.
    parameter_partitioning_dims: 2, or 1 to leave parameters whole on `fsdp`
      and split them by `tensor` alone.
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

    Of several TPU slices, each holds a part of `data`, the outermost axis:
    `fsdp` and `tensor`, which communicate in every layer, stay on the wires of
    one slice. Over the network between slices go the gradients of what is
    trained, once per step.

    Args:
      devices: of the mesh, which need not be of this machine; all devices of
        this run if None.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or
        `data` cannot be spread over the slices.
    """
    devices = jax.devices() if devices is None else devices
    num_slices = _num_slices(devices)
    data, *inner = mesh_sizes(self.mesh_shape, len(devices), num_slices)
    # Or a mesh of other proportions than the wires of a slice is refused.
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
    """Makes a mesh of devices that are not there, for shapes and shardings.

    Args:
      num_devices: of the run.
      num_slices: of which they are.

    Raises:
      ConfigError: as `make_mesh`.
    """
    sizes = mesh_sizes(self.mesh_shape, num_devices, num_slices)
    mesh = AbstractMesh(sizes, MESH_AXES, axis_types=_AXIS_TYPES)
    return LogicalMesh(mesh, self._rules())

  def _rules(self) -> Rules:
    return standard_rules(
      self.activation_partitioning_dims, self.parameter_partitioning_dims
    )


# Every device has the whole model, and a share of each batch.
DATA_PARALLEL = Partitioner()


def standard_rules(
  activation_partitioning_dims: int = 1, parameter_partitioning_dims: int = 2
) -> Rules:
  """Returns T5X's standard rules for our mesh.

  T5X has one axis `data` for what are `data` and `fsdp` here, and calls
  `tensor` `model`.

  Args:
    activation_partitioning_dims: 1 or 2; see `Partitioner`.
    parameter_partitioning_dims: 1 or 2.
  """
  rules = [('batch', BATCH_AXES)]
  rules += [(name, 'tensor') for name in _SPLIT_BY_TENSOR]
  # Activations have given `fsdp` to `batch`, and kernels `tensor` to their
  # other axis, so that each of these acts on one of the two kinds.
  if activation_partitioning_dims == 2:
    rules.append(('embed', 'tensor'))
  rules.append(('embed', 'fsdp' if parameter_partitioning_dims == 2 else None))
  return (*rules, *((name, None) for name in _NOT_SPLIT))


def make_mesh(mesh_shape: Sequence[int] = (-1, 1, 1)) -> LogicalMesh:
  """Makes the mesh of all devices under the standard rules.

  Raises:
    ConfigError: as `Partitioner.make_mesh`.
  """
  return Partitioner(mesh_shape).make_mesh()


def mesh_sizes(
  mesh_shape: Sequence[int], num_devices: int, num_slices: int = 1
) -> tuple[int, ...]:
  """Returns the sizes of the mesh axes.

  Args:
    mesh_shape: of `Partitioner`; -1 takes the devices that the others leave.
    num_devices: of all slices.
    num_slices: TPU slices that the devices are of.

  Raises:
    ConfigError: three sizes are not given, they do not multiply to the number
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
  """Returns how many TPU slices devices are of.

  A slice is what is wired together; JAX numbers the hosts of GPU clusters by
  the same attribute.
  """
  if devices[0].platform != 'tpu':
    return 1
  return len({getattr(device, 'slice_index', 0) for device in devices})


@contextlib.contextmanager
def use_mesh(mesh: LogicalMesh):
  """Makes `mesh` and its rules current, for tracing and for compiling."""
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
  """Returns shapes and dtypes with shardings, to restore or compile with."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def replicated(mesh: LogicalMesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
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
    accumulation_steps: parts in which an update is made.
    minibatches: updates made of a batch.

  Raises:
    ConfigError: it does not.
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
  """Refuses parts in which not every device has the same number of rows.

  Args:
    batch_size: rows of a global batch.
    mesh: the mesh.
    parts: in which a batch is sampled.

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
