"""Moves arrays onto the mesh and back, on one or several hosts.

Each host feeds the rows that its own devices hold. The mesh decides which rows
those are: hosts that share a row's computation (`tensor` across hosts) feed the
same rows, and a host's rows need not be contiguous.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from perlhf_jax.core import typing
from perlhf_jax.training import partitioning


@functools.cache
def _host_shards(mesh: partitioning.LogicalMesh) -> tuple[int, ...]:
  """Numbers of the shards of a batch that this host holds, in order."""
  devices = mesh.mesh.devices
  devices = devices.reshape(-1, devices.shape[-1])
  return tuple(
    number
    for number, shard in enumerate(devices)
    if any(device.process_index == jax.process_index() for device in shard)
  )


def _num_shards(mesh: partitioning.LogicalMesh) -> int:
  return mesh.mesh.devices.size // mesh.mesh.devices.shape[-1]


def host_rows(batch_size: int, mesh: partitioning.LogicalMesh) -> np.ndarray:
  """Returns the rows of a global batch that this host feeds: int64 `[rows]`.

  Args:
    batch_size: rows of the global batch, a multiple of the number of shards.
    mesh: the mesh.
  """
  size = batch_size // _num_shards(mesh)
  starts = np.asarray(_host_shards(mesh), np.int64) * size
  return (starts[:, None] + np.arange(size)).reshape(-1)


def shard_batch(
  batch: Mapping[str, np.ndarray], mesh: partitioning.LogicalMesh
) -> dict[str, jax.Array]:
  """Puts this host's rows of a batch on its devices.

  Args:
    batch: arrays `[rows, ...]` of the rows `host_rows`, in their order.
    mesh: the mesh.

  Returns:
    Arrays `[batch, ...]` over all hosts.
  """
  return {name: shard_rows(array, mesh) for name, array in batch.items()}


def shard_rows(array: np.ndarray, mesh: partitioning.LogicalMesh) -> jax.Array:
  """Puts this host's rows `[rows, ...]` of an array on its devices."""
  shards = _host_shards(mesh)
  size = len(array) // len(shards)
  place = {shard * size: number * size for number, shard in enumerate(shards)}

  def part(index):
    start = place[index[0].start or 0]
    return array[start : start + size]

  shape = (size * _num_shards(mesh), *array.shape[1:])
  return jax.make_array_from_callback(
    shape, partitioning.batch_sharding(mesh), part
  )


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: partitioning.LogicalMesh
) -> dict[str, jax.Array]:
  """Puts a global batch, which every host has, on the mesh."""
  sharding = partitioning.batch_sharding(mesh)
  return put(dict(batch), dict.fromkeys(batch, sharding))


def local_rows(array: jax.Array) -> np.ndarray:
  """Returns this host's rows of an array that is sharded by rows.

  Args:
    array: `[batch, ...]`, sharded on its first axis only.

  Returns:
    `[rows, ...]`, the rows `host_rows` in their order.
  """
  shards = {}
  for shard in array.addressable_shards:
    shards.setdefault(shard.index[0].start or 0, shard.data)
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def put(tree: typing.PyTree, shardings: typing.PyTree) -> typing.PyTree:
  """Puts arrays that every host has on the mesh; each host slices its shards.

  Args:
    tree: numpy arrays, or objects that can be sliced like them.
    shardings: tree of shardings, of the same structure.
  """

  def put_leaf(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: np.asarray(leaf[index])
    )

  return jax.tree.map(put_leaf, tree, shardings)


def to_host(array: jax.Array) -> np.ndarray:
  """Gathers a whole array from all hosts, as numpy.

  All hosts must call it.
  """
  if array.is_fully_addressable:
    return np.asarray(array)
  if array.is_fully_replicated:
    return np.asarray(array.addressable_data(0))
  return multihost_utils.process_allgather(array, tiled=True)


def gather_numbers(numbers: np.ndarray, share: int) -> np.ndarray:
  """Gathers numbers of which each host computed a share.

  All hosts must call it.

  Args:
    numbers: this host's numbers, `[share]`, or fewer on the last hosts.
    share: number of values per host.

  Returns:
    float64 `[hosts * share]`, in host order; missing values are 0.
  """
  mine = np.zeros(share)
  mine[: len(numbers)] = numbers
  if jax.process_count() == 1:
    return mine
  # Gathered as bits, because JAX would convert them to float32.
  bits = multihost_utils.process_allgather(mine.view(np.uint32))
  return np.ascontiguousarray(bits).view(np.float64).reshape(-1)
