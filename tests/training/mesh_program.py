"""Trains on eight simulated devices; run by partitioning_test.py.

Writes a pickle of what each mesh did to the path in argv[1].
"""

import contextlib
import dataclasses
import os
import pickle
import sys

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import jax
import jax.numpy as jnp
import numpy as np
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.core import masking
from perlhf_jax.core import tree_paths
from perlhf_jax.models import lora
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.objectives import losses
from perlhf_jax.training import compiled_step
from perlhf_jax.training import fingerprint
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step

CONFIG = dataclasses.replace(
  tiny_models.CONFIG, num_encoder_layers=1, num_decoder_layers=1
)
MESHES = ((8, 1, 1), (2, 2, 2), (1, 4, 2))
BATCH_SIZE = 8


def host_batch():
  prompt, mask = tiny_models.ragged_tokens(0, BATCH_SIZE, 9)
  targets, weights = tiny_models.ragged_tokens(1, BATCH_SIZE, 7)
  return {
    'prompt_tokens': prompt,
    'prompt_mask': mask,
    'inputs': np.asarray(masking.shift_right(targets)),
    'targets': targets,
    'weights': weights.astype(np.float32),
  }


def run(mesh, tuning):
  """Makes one training step on a mesh; returns all that can be compared."""
  model, adapters = tiny_models.adapted(lora.LoraConfig(rank=4), CONFIG)
  boxed = tiny_models.abstract_variables(CONFIG, model.adapters)
  values = {'params': tiny_models.params(CONFIG), 'lora': adapters}
  if tuning == 'full':
    model = t5.T5(CONFIG)
    boxed = tiny_models.abstract_variables(CONFIG)
    values = {'params': values['params']}
  shardings = partitioning.shardings_of(dict(boxed), mesh)
  values = jax.device_put(values, shardings)
  names = {'lora'} if tuning == 'lora' else {'params'}
  trainable = {n: v for n, v in values.items() if n in names}
  frozen = {n: v for n, v in values.items() if n not in names}

  def loss(trainable, frozen, batch, rng):
    logits = model.apply(
      {**frozen, **trainable}, prompts.of_batch(batch), batch['inputs']
    )
    output = losses.weighted_sums(
      losses.token_losses(logits, batch['targets']), batch['weights']
    )
    return train_step.LossOutput(output.loss_sum, output.weight_sum, {})

  config = optimizers.Optimizer(
    learning_rate=1e-2, multiply_by_parameter_scale=False
  )
  optimizer = optimizers.make_optimizer(config, 10)
  state_shardings = train_state.state_shardings(
    {n: shardings[n] for n in trainable}, trainable, optimizer, mesh
  )
  state = jax.jit(
    lambda t: train_state.create(t, optimizer), out_shardings=state_shardings
  )(trainable)
  step = compiled_step.CompiledStep(
    train_step.make_train_step(
      train_step.gradients_of(loss),
      optimizer,
      optimizers.make_schedule(config, 10),
      seed=0,
    ),
    mesh,
    name='step',
    out_shardings=(state_shardings, partitioning.replicated(mesh)),
  )
  batch = placement.shard_batch(host_batch(), mesh)
  state, metrics = step(state, frozen, batch)
  updates = jax.tree.map(
    lambda a, b: np.abs(np.subtract(a, b)).max(), state.trainable, trainable
  )
  flat = tree_paths.flatten({**frozen, **state.trainable})
  moments = jax.tree.leaves(state.opt_state)
  return {
    'metrics': {name: float(value) for name, value in metrics.items()},
    'smallest_update': min(jax.tree.leaves(updates)),
    'leaves': {p: placement.to_host(leaf) for p, leaf in flat.items()},
    'shards': {
      p: leaf.sharding.shard_shape(leaf.shape) for p, leaf in flat.items()
    },
    'moment_shards': {
      (leaf.shape, leaf.sharding.shard_shape(leaf.shape)) for leaf in moments
    },
    'batch_shard': batch['prompt_tokens'].sharding.shard_shape((BATCH_SIZE, 9)),
    'memory_bytes': step.memory_bytes,
    'fingerprint': fingerprint.fingerprint(values['params']),
  }


def activation_shards(mesh):
  """Shapes that one device holds of what the constraints say."""
  seen = {}

  def forward(x):
    x = partitioning.nn.with_logical_constraint(
      x, ('batch', 'length', 'heads', 'kv')
    )
    jax.debug.inspect_array_sharding(
      x, callback=lambda s: seen.update(shard=s.shard_shape(x.shape))
    )
    return jnp.tanh(x)

  with partitioning.use_mesh(mesh):
    jax.jit(forward).lower(jnp.zeros((8, 3, 2, 5))).compile()
  return seen['shard']


def error_of(function, *arguments):
  try:
    function(*arguments)
  except errors.ConfigError as error:
    return str(error)
  return None


@contextlib.contextmanager
def two_slices():
  """Makes the devices those of two TPU slices, every second one of each."""
  kind = type(jax.devices()[0])
  kind.slice_index = property(lambda device: device.id % 2)
  counted = partitioning._num_slices
  partitioning._num_slices = lambda devices: 2
  yield
  partitioning._num_slices = counted
  del kind.slice_index


def main(path):
  alone = partitioning.Partitioner().make_mesh(jax.devices()[:1])
  meshes = {shape: partitioning.make_mesh(shape) for shape in MESHES}
  meshes[1, 1, 1] = alone
  with two_slices():
    sliced = meshes['two slices'] = partitioning.make_mesh((2, 2, 2))
    across_slices = error_of(partitioning.make_mesh, (1, 4, 2))
  wide = partitioning.make_mesh((1, 1, -1))
  square = meshes[2, 2, 2]
  results = {
    'devices': jax.device_count(),
    'runs': {
      (shape, tuning): run(mesh, tuning)
      for shape, mesh in meshes.items()
      for tuning in ('lora', 'full')
    },
    'activation_shards': {s: activation_shards(m) for s, m in meshes.items()},
    'default_mesh': dict(partitioning.make_mesh().shape),
    'two_slices': np.vectorize(lambda device: device.id)(sliced.mesh.devices),
    'rest_of_mesh': dict(partitioning.make_mesh((2, -1, 2)).shape),
    'errors': {
      'slices': across_slices,
      'product': error_of(partitioning.make_mesh, (3, 1, 1)),
      'no_rest': error_of(partitioning.make_mesh, (-1, 3, 1)),
      'negative': error_of(partitioning.make_mesh, (-2, -4, 1)),
      'indivisible': error_of(
        partitioning.shardings_of,
        dict(tiny_models.abstract_variables(CONFIG)),
        wide,
      ),
      'batch': error_of(partitioning.check_batch_size, 6, square),
      'parts': error_of(partitioning.check_batch_size, 12, square, 2),
      'good': error_of(partitioning.check_batch_size, 16, square, 2),
      'zero': error_of(partitioning.check_batch_size, 0, square),
    },
  }
  with open(path, 'wb') as file:
    pickle.dump(results, file)


if __name__ == '__main__':
  main(sys.argv[1])
