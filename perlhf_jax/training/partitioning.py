"""The device mesh, and one table from logical axes to mesh axes.

Layers name logical axes (T5X's names); only this file knows the mesh. Axes of
the mesh: `data` replicates parameters, `fsdp` shards both batch and
parameters, `tensor` splits heads, hidden units and vocabulary.
"""

from collections.abc import Mapping, Sequence
import contextlib
import math

import flax.linen as nn
import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing

MESH_AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')

# An array uses a mesh axis once: of two logical axes that ask for it, the one
# that comes first here gets it. So activations give `fsdp` to `batch`.
LOGICAL_AXIS_RULES = (
  ('batch', BATCH_AXES),
  ('vocab', 'tensor'),
  ('mlp', 'tensor'),
  ('heads', 'tensor'),
  ('joined_kv', 'tensor'),
  ('embed', 'fsdp'),
  ('kv', None),
  ('length', None),
  ('layers', None),
  ('lora_rank', None),
  ('relpos_buckets', None),
)


def make_mesh(mesh_shape: Sequence[int] = (-1, 1, 1)) -> Mesh:
  """Makes the mesh of all devices.

  Args:
    mesh_shape: sizes of (data, fsdp, tensor); one of them may be -1 and takes
      the devices that the others leave.

  Raises:
    ConfigError: the product is not the number of devices.
  """
  devices = jax.device_count()
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
    sizes[sizes.index(-1)] = devices // rest
  if math.prod(sizes) != devices:
    raise errors.ConfigError(
      f'MESH_SHAPE {tuple(mesh_shape)} (data, fsdp, tensor) does not multiply '
      f'to the number of devices, {devices}.'
    )
  # Auto axes: the compiler propagates shardings from the constraints here.
  return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


@contextlib.contextmanager
def use_mesh(mesh: Mesh):
  """Makes `mesh` and the rules current, for tracing and for compiling."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXIS_RULES):
    yield


def shardings_of(boxed: typing.PyTree, mesh: Mesh) -> typing.PyTree:
  """Returns the sharding of every leaf of a boxed tree (arrays or shapes).

  Raises:
    ConfigError: a mesh axis does not divide the dimension that it splits.
  """
  specs = nn.get_partition_spec(boxed)
  shardings = nn.logical_to_mesh_sharding(specs, mesh, LOGICAL_AXIS_RULES)
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


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is `batch`."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(
  batch_size: int,
  mesh: Mesh,
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


def shard_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """Puts this process's rows of a batch on its devices."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }


def to_host(array: jax.Array) -> np.ndarray:
  """Gathers an array, rows of all hosts included, as numpy."""
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)
