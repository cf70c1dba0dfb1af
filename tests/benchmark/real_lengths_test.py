import numpy as np
import pytest

from perlhf_jax.benchmark import machine
from perlhf_jax.benchmark import real_lengths
from perlhf_jax.training import partitioning


def test_each_batch_once_after_each_shape():
  mesh = partitioning.make_mesh()
  log = []

  class Programs:
    memory_bytes = 7

    def __init__(self, name):
      self._name = name

    def train(self, batch):
      log.append((self._name, batch['prompt_tokens'].shape[1]))
      return {}

  def batch(length, tokens):
    mask = np.arange(length) < np.array(tokens)[:, None]
    return {
      'prompt_tokens': np.zeros((2, length), np.int32),
      'prompt_mask': mask,
      'example_mask': np.ones(2, bool),
    }

  batches = [batch(8, (8, 3)), batch(4, (4, 4)), batch(8, (5, 5))]
  figures = real_lengths.measure(
    {name: Programs(name) for name in 'xy'},
    batches,
    mesh,
    machine.Machine('float32', 1.0, 1.0),
  )
  # Each shape once before, and then the batches, of the tunings in turn.
  assert log == [('x', 8), ('x', 4), ('y', 8), ('y', 4)] + [
    (name, length) for length in (8, 4, 8) for name in 'xy'
  ]
  for found in figures.values():
    assert found['batches'] == 3 and found['shapes'] == 2
    assert found['padding'] == pytest.approx(1 - 29 / 40)
    assert found['tokens_per_second'] == pytest.approx(
      found['examples_per_second'] * 29 / 6
    )
    assert found['step_memory_bytes'] == 7
