"""How T5 1.1 base lies on eight simulated devices; run by sharding_test.py.

Writes a pickle to the path in argv[1]. Nothing is materialised but a tiny
model for the cache.
"""

import dataclasses
import os
import pickle
import sys

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import flax
import jax
import jax.numpy as jnp
import numpy as np
import tiny_models

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.models import kv_cache
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import prompts
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.rl import reinforce
from perlhf_jax.rl import reward_sources
from perlhf_jax.rl import roles as roles_lib
from perlhf_jax.rl import settings
from perlhf_jax.rl import step as step_lib
from perlhf_jax.runs import run as run_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning

BASE = dataclasses.replace(tiny_models.T5_1_1_BASE, scan_layers=True)
MESH = (1, 4, 2)


def leaves(tree):
  """Path, shape, shape on one device, and bytes of a number, of each leaf."""
  return [
    (
      jax.tree_util.keystr(path),
      leaf.shape,
      leaf.sharding.shard_shape(leaf.shape),
      leaf.dtype.itemsize,
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def reward_state(mesh, lora, optimizer):
  start = loaded_model.LoadedModel(BASE)
  run = run_lib.make_run(
    start,
    lora,
    mesh,
    0,
    init_heads=lambda rng: reward_model.init_heads(BASE, rng),
    only_shapes=True,
  )
  steps = run_lib.make_steps(
    run, lambda *_: None, optimizer, train_steps=10, seed=0
  )
  state = jax.eval_shape(steps.create, run.trainable)
  state = partitioning.abstract_arrays(state, steps.shardings)
  return leaves({'state': state, 'frozen': run.frozen})


def policy_state(mesh, lora, optimizer):
  roles = roles_lib.make_roles(
    loaded_model.LoadedModel(BASE),
    lora,
    mesh,
    0,
    needs_value=True,
    only_shapes=True,
  )
  step = step_lib.Step(
    roles.models,
    reward_sources.RewardSources().scoring(None, mesh),
    settings.Settings(reinforce.Reinforce(), sampler.SamplingConfig(8), 0.1),
    mesh,
    trainable=roles.trainable,
    trainable_shardings=roles.trainable_shardings,
    optimizer_configs=dict.fromkeys(roles.trainable, optimizer),
    train_steps=10,
  )
  state = jax.eval_shape(step.create, roles.trainable)
  state = partitioning.abstract_arrays(state, step.shardings)
  return leaves({'state': state, 'frozen': roles.frozen})


def cache_specs(mesh):
  """How the compiler lays the cache of a step of decoding."""
  config = dataclasses.replace(tiny_models.CONFIG, scan_layers=False)
  model = t5.T5(config)
  params = flax.core.meta.unbox(tiny_models.params(config))

  def decode(params, encoded, tokens):
    position = kv_cache.CachePosition(jnp.zeros((), jnp.int32), 8)
    _, updated = model.apply(
      {'params': params},
      encoded,
      tokens,
      position,
      method='decode_one',
      mutable=['cache'],
    )
    return updated['cache']

  rows = partitioning.batch_sharding(mesh)
  encoded = prompts.Encoded(
    states=np.zeros((8, 8, config.emb_dim), np.float32),
    mask=np.ones((8, 8), bool),
  )
  batch = jax.device_put((encoded, np.zeros((8, 1), np.int32)), rows)
  with partitioning.use_mesh(mesh):
    compiled = jax.jit(decode).lower(params, *batch).compile()
  return [
    (jax.tree_util.keystr(path), sharding.shard_shape((8, 4, 8, 8)))
    for path, sharding in jax.tree_util.tree_leaves_with_path(
      compiled.output_shardings
    )
  ]


def main(path):
  mesh = partitioning.make_mesh(MESH)
  lora = lora_lib.LoraConfig(rank=8)
  results = {
    (stage.__name__, tuning, name): stage(
      mesh,
      lora if tuning == 'lora' else None,
      optimizers.Optimizer(name=name),
    )
    for stage in (reward_state, policy_state)
    for tuning in ('lora', 'full')
    for name in ('adafactor', 'adamw')
  }
  results['cache'] = cache_specs(partitioning.make_mesh((2, 2, 2)))
  one_dim = partitioning.Partitioner(
    MESH, activation_partitioning_dims=2, parameter_partitioning_dims=1
  ).make_mesh()
  results['one_dim'] = reward_state(one_dim, None, optimizers.Optimizer())
  with open(path, 'wb') as file:
    pickle.dump(results, file)


if __name__ == '__main__':
  main(sys.argv[1])
