"""The programs of a run from shapes alone, built as the stages build them."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import tree_paths
from perlhf_jax.data import feature_converters
from perlhf_jax.data import kinds
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5_config
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import reward_sources
from perlhf_jax.rl import roles as roles_lib
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import step as step_lib
from perlhf_jax.runs import run as run_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.stages import train_dpo
from perlhf_jax.stages import train_reward
from perlhf_jax.training import model_variables
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning

REWARD_STEP = 'reward_step'
ROLLOUT = 'rl_rollout'
SCORING = 'rl_scoring'
UPDATE = 'rl_update'
DPO_STEP = 'dpo_step'
# The programs of the paper's pipeline.
PIPELINE = (REWARD_STEP, ROLLOUT, SCORING, UPDATE)
PROGRAMS = (*PIPELINE, DPO_STEP)

# Memory does not depend on these.
_SEED = 0
_TRAIN_STEPS = 1_000_000
_KL_BETA = 0.05
_DPO_LOSS, _DPO_BETA = 'dpo', 0.1

_OUTPUT_LAYER = 'logits_dense/kernel'


@dataclasses.dataclass(frozen=True)
class Setting:
  """The setting of a run.

  Attributes:
    model: the architecture.
    lora: adapters; None for full tuning.
    optimizer: optimizer of every trained model.
    algorithm: the RL algorithm.
    task_feature_lengths: tokens of `inputs` and `targets`.
    batch_size: pairs per step, and prompts per iteration.
    num_samples: responses per prompt.
    accumulation_steps: number of parts of an update that are differentiated one
      after the other.
    rollout_parts: number of parts of a batch that are sampled one after the
      other.
    temperature: temperature of the sampling.
    programs: the programs to make, of `PROGRAMS`.
  """

  model: t5_config.T5Config
  lora: lora_lib.LoraConfig | None
  optimizer: optimizers.Optimizer
  algorithm: algorithm_lib.Algorithm
  task_feature_lengths: Mapping[str, int]
  batch_size: int
  num_samples: int = 1
  accumulation_steps: int = 1
  rollout_parts: int = 1
  temperature: float = 1.0
  programs: tuple[str, ...] = PIPELINE

  @property
  def tuning(self) -> str:
    """`lora` or `full`."""
    return 'full' if self.lora is None else 'lora'

  def check_batch_size(self, mesh: partitioning.LogicalMesh) -> None:
    """Raises a ConfigError if mesh and parts do not divide the batch."""
    partitioning.check_batch_size(
      self.batch_size, mesh, self.accumulation_steps, self.algorithm.minibatches
    )
    partitioning.check_parts(self.batch_size, mesh, self.rollout_parts)

  def batch_multiple(self, mesh: partitioning.LogicalMesh) -> int:
    """Returns the number that must divide every batch size."""
    shards = math.prod(mesh.shape[axis] for axis in partitioning.BATCH_AXES)
    updates = self.accumulation_steps * self.algorithm.minibatches
    return shards * math.lcm(updates, self.rollout_parts)


@dataclasses.dataclass(frozen=True)
class Program:
  """A program, and the bytes that a device holds while it runs.

  Attributes:
    name: one of `PROGRAMS`.
    lower: lowers it.
    argument_bytes: bytes per device, summed from the shapes that it reads.
    resident_bytes: bytes per device of its arguments, and of the weights and
      optimizer states that wait for the other programs.
  """

  name: str
  lower: Callable[[], jax.stages.Lowered]
  argument_bytes: int
  resident_bytes: int


def make_programs(
  setting: Setting, mesh: partitioning.LogicalMesh
) -> Iterator[Program]:
  """Yields the programs of a setting, in the order of `PROGRAMS`.

  Args:
    setting: the setting.
    mesh: a mesh whose devices need not be here.

  Raises:
    ConfigError: the mesh does not divide a dimension of the model.
  """
  if REWARD_STEP in setting.programs:
    yield _reward_step(setting, mesh)
  if {ROLLOUT, SCORING, UPDATE} & {*setting.programs}:
    for program in _policy_programs(setting, mesh):
      if program.name in setting.programs:
        yield program
  if DPO_STEP in setting.programs:
    yield _dpo_step(setting, mesh)


def device_bytes(tree: Any) -> int:
  """Returns the bytes per device of a tree of sharded shapes."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _reward_step(setting, mesh) -> Program:
  start = loaded_model.LoadedModel(setting.model)
  run = run_lib.make_run(
    start,
    setting.lora,
    mesh,
    _SEED,
    init_heads=lambda rng: reward_model.init_heads(start.config, rng),
    only_shapes=True,
  )
  rewards = reward_model.RewardModel(run.model)
  return _pair_step(
    REWARD_STEP,
    setting,
    run,
    train_reward.make_loss(rewards, kinds.PAIRWISE, 0.0),
    read=_without_output_layer(run.frozen),
  )


def _dpo_step(setting, mesh) -> Program:
  start = loaded_model.LoadedModel(setting.model)
  run = train_dpo.make_run(start, setting.lora, mesh, _SEED, only_shapes=True)
  limit = setting.task_feature_lengths['targets']
  return _pair_step(
    DPO_STEP,
    setting,
    run,
    train_dpo.make_loss(run.model, _DPO_LOSS, _DPO_BETA, limit),
    read=run.frozen,
  )


def _pair_step(name, setting, run, loss, *, read) -> Program:
  """Returns a training step on pairs.

  Args:
    name: name of the program.
    setting: the setting.
    run: the model.
    loss: the loss.
    read: the part of `run.frozen` that the step reads.
  """
  steps = run_lib.make_steps(
    run,
    loss,
    setting.optimizer,
    train_steps=_TRAIN_STEPS,
    seed=_SEED,
    accumulation_steps=setting.accumulation_steps,
  )
  state = _created(steps, run.trainable)
  lengths = setting.task_feature_lengths
  tokens = np.ones(1, np.int32)
  batch = _abstract_batch(
    setting,
    feature_converters.Converter(
      kinds.PAIRWISE, lengths['inputs'], lengths['targets']
    )([{'inputs': tokens, 'chosen': tokens, 'rejected': tokens}]),
    run.mesh,
  )
  return Program(
    name,
    lambda: steps.train.lower(state, run.frozen, batch),
    device_bytes((state, read, batch)),
    device_bytes((state, run.frozen, batch)),
  )


def _policy_programs(setting, mesh) -> Iterator[Program]:
  roles = _with_reward_model(
    roles_lib.make_roles(
      loaded_model.LoadedModel(setting.model),
      setting.lora,
      mesh,
      _SEED,
      needs_value=setting.algorithm.needs_value,
      only_shapes=True,
    ),
    setting,
    mesh,
  )
  lengths = setting.task_feature_lengths
  settings = settings_lib.Settings(
    algorithm=setting.algorithm,
    sampling=sampler.SamplingConfig(
      max_length=lengths['targets'],
      temperature=setting.temperature,
      num_samples=setting.num_samples,
      parts=setting.rollout_parts,
    ),
    kl_beta=_KL_BETA,
    seed=_SEED,
    accumulation_steps=setting.accumulation_steps,
  )
  step = step_lib.Step(
    roles.models,
    reward_sources.RewardSources().scoring(None, mesh),
    settings,
    mesh,
    trainable=roles.trainable,
    trainable_shardings=roles.trainable_shardings,
    optimizer_configs=dict.fromkeys(roles.trainable, setting.optimizer),
    train_steps=_TRAIN_STEPS,
  )
  state = _created(step, roles.trainable)
  policy, value = (state.trainable.get(role) for role in ('policy', 'value'))
  prompts = _abstract_batch(
    setting,
    feature_converters.Converter(kinds.PROMPTS, lengths['inputs'])(
      [{'inputs': np.ones(1, np.int32)}]
    ),
    mesh,
  )
  backbone = {'params': roles.frozen['params']}
  read_backbone = _rest(backbone, policy)
  held = device_bytes((state, roles.frozen))

  number = jax.ShapeDtypeStruct(
    (), np.int32, sharding=partitioning.replicated(mesh)
  )
  sampling = step.rollout.sampling.lower(policy, backbone, number, prompts)
  yield Program(
    ROLLOUT,
    lambda: sampling,
    device_bytes((policy, read_backbone, prompts)),
    held + device_bytes(prompts),
  )

  samples = _split_by_rows(sampling.out_info[0], mesh)
  if settings.has_one_update:
    value = None
  assessment = step.rollout.assessment.lower(value, roles.frozen, samples)
  read, read_samples = backbone, samples
  if samples.encoding is not None:  # All roles are tuned alike and share it.
    read_backbone, read = map(_decoder_alone, (read_backbone, read))
    read_samples = samples.replace(prompts=None)
  yield Program(
    SCORING,
    lambda: assessment,
    device_bytes(
      (
        _without_output_layer(value),
        read,
        _without_output_layer(roles.frozen['rewards']),
        read_samples.replace(logprobs=None, example_mask=None),
      )
    ),
    held + device_bytes(samples),
  )

  opinions = _split_by_rows(assessment.out_info, mesh)
  experience = samples.replace(**opinions._asdict())
  scores = jax.eval_shape(step.scoring, experience)
  experience = experience.replace(scores=_split_by_rows(scores, mesh))
  yield Program(
    UPDATE,
    lambda: step.learning.lower(state, backbone, experience),
    device_bytes(
      (
        state,
        read_backbone,
        experience.replace(prompts=read_samples.prompts),
      )
    ),
    held + device_bytes(experience),
  )


def _created(steps, trainable) -> Any:
  """Returns the shapes of the state before the first step."""
  return partitioning.abstract_arrays(
    jax.eval_shape(steps.create, trainable), steps.shardings
  )


def _with_reward_model(roles, setting, mesh) -> roles_lib.Roles:
  """Adds a reward model with the same tuning as the policy."""
  model = roles.models.policy

  def init():
    _, policy = roles_lib.init_roles(
      loaded_model.LoadedModel(setting.model),
      model.adapters,
      _SEED,
      needs_value=False,
    )
    heads = reward_model.init_heads(setting.model, jax.random.key(_SEED))
    return {**policy['policy'], 'heads': heads}

  variables, _ = model_variables.shapes(init, mesh)
  if 'params' in variables:
    variables['params'] = frozen_dtypes.cast(variables['params'], setting.model)
  models = dataclasses.replace(
    roles.models, rewards=(reward_model.RewardModel(model),)
  )
  frozen = {**roles.frozen, 'rewards': (variables,)}
  return dataclasses.replace(roles, models=models, frozen=frozen)


def _rest(backbone: Mapping[str, Any], role: Mapping[str, Any]) -> Any:
  """Returns the backbone parameters that a role shares."""
  own = tree_paths.flatten(role)
  flat = tree_paths.flatten(backbone)
  return {path: leaf for path, leaf in flat.items() if path not in own}


def _decoder_alone(backbone: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the backbone parameters that are read after encoding prompts."""
  flat = tree_paths.flatten(backbone)
  parts = 'params/decoder/', 'params/token_embedder/'
  return {path: leaf for path, leaf in flat.items() if path.startswith(parts)}


def _abstract_batch(setting, batch, mesh) -> dict[str, Any]:
  """Returns the shapes of a full batch from a one-row batch, plus images."""
  sharding, rows = partitioning.batch_sharding(mesh), setting.batch_size
  if (side := setting.model.image_size) is not None:
    count = setting.task_feature_lengths.get('images', 1)
    batch = {
      **batch,
      'images': np.zeros((1, count, side, side, 3), np.uint8),
      'image_mask': np.zeros((1, count), bool),
    }
  return {
    name: jax.ShapeDtypeStruct(
      (rows, *array.shape[1:]), array.dtype, sharding=sharding
    )
    for name, array in batch.items()
  }


def _split_by_rows(shapes: Any, mesh) -> Any:
  """Returns the shapes of samples, with rows sharded over the mesh."""
  rows = partitioning.batch_sharding(mesh)
  return partitioning.abstract_arrays(
    shapes, jax.tree.map(lambda _: rows, shapes)
  )


def _without_output_layer(tree: Any) -> Any:
  """Drops the output layer, which models with a scalar head do not read."""
  if isinstance(tree, tuple):
    return tuple(map(_without_output_layer, tree))
  flat = tree_paths.flatten(tree or {})
  return {p: x for p, x in flat.items() if not p.endswith(_OUTPUT_LAYER)}
