"""Small steps of a run, and what each way of reading them returns."""

import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.training import array_digests
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import step_files
from perlhf_jax.training import train_state

METADATA = {'kind': 'test', 'format_version': 3}
# The validation metric of each step: the newest is the best.
METRICS = {1: 0.1, 2: 0.7, 3: 0.9}


def state(step):
  """Returns a state of random numbers, others for each step."""
  rng = np.random.default_rng(step)
  leaves = {
    name: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for name, shape in (('a', (64, 16)), ('b', (3,)))
  }
  return train_state.TrainState(
    jnp.asarray(step, jnp.int32), {'lora': leaves}, {'mu': leaves}
  )


def save(folder, steps, **keep):
  """Saves steps as one run."""
  manager = checkpoint_manager.CheckpointManager(folder, METADATA, **keep)
  for step in steps:
    manager.save(state(step), METRICS.get(step))
  manager.close()


def read(step):
  """Reads the weights of a step alone."""
  return jax.tree.map(np.asarray, step_files.read_trainable(step))


def whole(step):
  """Reads the whole state of a step."""
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state(1),
  )
  return jax.tree.map(np.asarray, checkpoint_manager.restore(step, abstract))


def intact(path):
  """Returns the step that whoever reads a whole state gets."""

  def read_whole(step):
    whole(step)
    return step

  return step_files.read_intact(str(path), read_whole)


def assert_holds(step, number):
  """Checks what each way of reading a step returns."""
  assert_same_as(whole(step), number)
  expected = jax.tree.map(np.asarray, state(number).trainable)
  found = read(step)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_same_as(restored, number):
  """Checks a whole state."""
  expected = array_digests.by_name(state(number))
  found = array_digests.by_name(restored)
  assert found.keys() == expected.keys()
  for name, leaf in expected.items():
    np.testing.assert_array_equal(found[name], leaf)
