"""The least memory that a device needs, from shapes alone."""

from collections.abc import Mapping
from typing import Any

import jax

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5_config
from perlhf_jax.plan import programs as programs_lib
from perlhf_jax.rl import roles as roles_lib
from perlhf_jax.runs import run as run_lib
from perlhf_jax.stages import train_dpo
from perlhf_jax.training import memory
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import topologies
from perlhf_jax.training import train_state

_SEED = 0


def held_bytes(
  config: t5_config.T5Config,
  arguments: Mapping[str, Any],
  mesh: partitioning.LogicalMesh,
) -> int:
  """Returns the bytes per device of weights and optimizer states.

  Omits the reward models of reinforcement learning, which are small with LoRA.

  Args:
    config: the model.
    arguments: the arguments of a stage.
    mesh: the mesh, of devices or abstract.
  """
  start = loaded_model.LoadedModel(config)
  if 'value_optimizer' in arguments:
    roles = roles_lib.make_roles(
      start,
      arguments['lora'],
      mesh,
      _SEED,
      needs_value=arguments['algorithm'].needs_value,
      only_shapes=True,
    )
    trained = {
      role: (tree, roles.trainable_shardings[role])
      for role, tree in roles.trainable.items()
    }
    configs = {r: arguments[f'{r}_optimizer'] for r in trained}
    frozen = roles.frozen
  elif 'beta' in arguments:  # Preference tuning, with a reference.
    run = train_dpo.make_run(
      start, arguments['lora'], mesh, _SEED, only_shapes=True
    )
    trained = {'policy': (run.trainable, run.trainable_shardings)}
    configs = {'policy': arguments['optimizer']}
    frozen = run.frozen
  else:
    # Heads are small; only the presence of the backbone and adapters counts.
    run = run_lib.make_run(
      start,
      arguments.get('lora'),
      mesh,
      _SEED,
      init_heads=lambda rng: reward_model.init_heads(config, rng),
      only_shapes=True,
    )
    trained = {'model': (run.trainable, run.trainable_shardings)}
    configs = {'model': arguments.get('optimizer')}
    frozen = run.frozen
  total = programs_lib.device_bytes(frozen)
  for role, (tree, shardings) in trained.items():
    total += programs_lib.device_bytes(tree)
    if configs[role] is not None:
      total += _optimizer_bytes(tree, shardings, configs[role], mesh)
  return total


def _optimizer_bytes(tree, shardings, config, mesh) -> int:
  optimizer = optimizers.make_optimizer(config, 1)
  placed = train_state.state_shardings(shardings, tree, optimizer, mesh)
  shapes = jax.eval_shape(optimizer.init, tree)
  return programs_lib.device_bytes(
    partitioning.abstract_arrays(shapes, placed.opt_state)
  )


def free_bytes(
  topology: topologies.Topology | None, num_devices: int
) -> tuple[int | None, str]:
  """Returns the free bytes of a device, and the name of its machine.

  Args:
    topology: the slice; None for this machine.
    num_devices: number of devices of the run; for another number than this
      machine's, the bytes are unknown.
  """
  if topology is not None:
    return topology.memory_bytes, f'of {topology.name}'
  if num_devices != jax.device_count():
    return None, ''
  return memory.device_free_bytes(), 'here'


def readable(count: int) -> str:
  """Returns bytes as text such as `1.5 GiB`."""
  for unit, size in (('GiB', 2**30), ('MiB', 2**20)):
    if count >= size:
      return f'{count / size:.1f} {unit}'
  return f'{count / 2**10:.1f} KiB'
