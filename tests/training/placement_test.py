"""What needs no second host; the rest is in tests/stages/everywhere_test.py."""

import jax
import numpy as np
import pytest

from perlhf_jax.training import partitioning
from perlhf_jax.training import placement


@pytest.fixture(name='mesh')
def _mesh():
  return partitioning.make_mesh()


def test_one_host_feeds_all_rows(mesh):
  np.testing.assert_array_equal(placement.host_rows(6, mesh), np.arange(6))


# Where the mesh is laid along the wires, a host's rows need not be neighbours.
def test_a_host_feeds_the_rows_of_its_shards(mesh, monkeypatch):
  monkeypatch.setattr(placement, '_host_shards', lambda mesh: (1, 3))
  monkeypatch.setattr(placement, '_num_shards', lambda mesh: 4)
  rows = placement.host_rows(12, mesh)
  assert rows.tolist() == [3, 4, 5, 9, 10, 11]


def test_rows_come_back_as_they_were_put(mesh):
  rows = {'tokens': np.arange(12).reshape(4, 3), 'mask': np.eye(4) > 0}
  for put in placement.shard_batch, placement.put_batch:
    placed = put(rows, mesh)
    for name, array in rows.items():
      assert placed[name].dtype == array.dtype or name == 'tokens'
      np.testing.assert_array_equal(placement.to_host(placed[name]), array)
      np.testing.assert_array_equal(placement.local_rows(placed[name]), array)


def test_put_reads_slices_alone(mesh):
  class Reader:
    shape, dtype = (4, 2), np.dtype('float32')

    def __init__(self):
      self.indices = []

    def __getitem__(self, index):
      self.indices.append(index)
      return np.ones(self.shape, np.float32)[index]

  reader = Reader()
  placed = placement.put(
    {'kernel': reader}, {'kernel': partitioning.batch_sharding(mesh)}
  )
  assert len(reader.indices) == jax.device_count()
  np.testing.assert_array_equal(placed['kernel'], np.ones((4, 2)))


def test_numbers_of_a_single_host(mesh):
  gathered = placement.gather_numbers(np.array([1.5, 1e300]), 3)
  np.testing.assert_array_equal(gathered, [1.5, 1e300, 0.0])
