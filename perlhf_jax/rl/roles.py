"""The four roles on the mesh: policy, reference, value, reward.

With LoRA there is one frozen backbone, which is the reference. The other roles
are adapters on it, and heads. Under full tuning, policy and value are copies of
the backbone. A reward model with another backbone has its own.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from absl import logging
import jax

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import placed
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.models import dora
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import tuned_params
from perlhf_jax.rl import shared_backbone
from perlhf_jax.training import model_variables
from perlhf_jax.training import partitioning


@dataclasses.dataclass(frozen=True)
class Roles:
  """Models and weights of all roles.

  Attributes:
    models: the modules.
    trainable: `{'policy': …, 'value': …}`.
    frozen: `{'params': …, 'rewards': (…,)}`.
    trainable_shardings: the shardings of `trainable`.
    trainable_fraction: trainable parameters over all parameters in memory.
    reward_models: the loaded reward models, without weights.
  """

  models: shared_backbone.Models
  trainable: Mapping[str, Any]
  frozen: Mapping[str, Any]
  trainable_shardings: Mapping[str, Any]
  trainable_fraction: float
  reward_models: tuple[loaded_model.LoadedModel, ...] = ()


def load_reward_model(
  path: str,
  shared: loaded_model.LoadedModel,
  mesh: partitioning.LogicalMesh,
  response_length: int,
) -> loaded_model.LoadedModel:
  """Loads a reward model and checks that it fits the policy.

  Args:
    path: checkpoint of the reward model.
    shared: the policy's reference, with or without weights; the reward model's
      adapters may be trained on it.
    mesh: where to put weights.
    response_length: the most tokens of a response.

  Raises:
    CheckpointError: the checkpoint is not a reward model, or has another
      vocabulary.
  """
  checkpoint = placed.require_reward_model(
    loading.load(path, mesh, shared=shared), path
  )
  theirs, vocabulary = checkpoint.vocabulary, shared.vocabulary
  if theirs != vocabulary:
    raise errors.CheckpointError(
      f'The reward model {path} reads {theirs}, but the policy writes '
      f'{vocabulary}. Train the reward model from a checkpoint with '
      "the policy's vocabulary."
    )
  _check_image_size(checkpoint, path, shared.config.image_size)
  trained = checkpoint.lengths.get('targets', response_length)
  if trained < response_length:
    logging.warning(
      'Responses may have %d tokens, but the reward model %s was trained on '
      'at most %d.',
      *(response_length, path, trained),
    )
  return checkpoint


def _check_image_size(checkpoint, path, image_size) -> None:
  """Raises an error if a reward model cannot read the policy's images."""
  theirs = checkpoint.config.image_size
  if image_size in (None, theirs):
    return
  what = 'only text' if theirs is None else f'images of {theirs} pixels'
  raise errors.CheckpointError(
    f'The reward model {path} reads {what}, but the policy reads images of '
    f'{image_size} pixels. Train the reward model from a checkpoint of the '
    "policy's image size."
  )


def init_roles(
  start: loaded_model.LoadedModel,
  adapters: lora_lib.Adapters | None,
  seed: int,
  *,
  needs_value: bool,
) -> tuple[shared_backbone.Models, dict[str, Any]]:
  """Initialises policy, reference and value.

  Can be traced: `jax.eval_shape` gives the shapes of all weights.

  Args:
    start: the initial model.
    adapters: None for full tuning.
    seed: seed of the adapters.
    needs_value: whether there is a value model.

  Returns:
    The modules, and boxed `{'params', 'policy', 'value'}`.
  """
  models = _make_models(start, adapters, needs_value=needs_value)
  rng, policy_rng, value_rng = jax.random.split(jax.random.key(seed), 3)

  def role(rng):
    variables = encoder_decoder.init_variables(models.policy, rng)
    tuned, _ = tuned_params.split(
      variables.pop('params'), start.config, lora=adapters is not None
    )
    return {**variables, 'params': tuned} if tuned else variables

  variables = {
    'params': encoder_decoder.init_variables(models.reference, rng)['params'],
    'policy': role(policy_rng),
  }
  if needs_value:
    variables['value'] = {
      **role(value_rng),
      'heads': policy_lib.init_value_heads(start.config),
    }
  return models, variables


def make_roles(
  start: loaded_model.LoadedModel,
  lora: lora_lib.LoraConfig | None,
  mesh: partitioning.LogicalMesh,
  seed: int,
  *,
  needs_value: bool,
  rewards: Sequence[loaded_model.LoadedModel] = (),
  only_shapes: bool = False,
) -> Roles:
  """Puts all roles on the mesh.

  Args:
    start: the initial model of policy, reference and value.
    lora: None for full tuning.
    mesh: the mesh.
    seed: seed of the adapters.
    needs_value: whether there is a value model.
    rewards: reward models from `load_reward_model`.
    only_shapes: whether to make `jax.ShapeDtypeStruct`s instead of arrays, for
      compiling; then `start` needs no weights, and `rewards` must be empty.
  """
  # The programs below must not keep a reference to the weights.
  params, start = start.params, start.without_weights()
  adapters = None
  if lora is not None:
    adapters = lora_lib.resolve(
      lora, encoder_decoder.dense_module_paths(start.config)
    )
  models = _make_models(start, adapters, needs_value=needs_value)

  def init(name):
    return init_roles(start, adapters, seed, needs_value=needs_value)[1][name]

  given = {} if only_shapes else {'params': params}

  def place(init, given):
    if only_shapes:
      return model_variables.shapes(init, mesh)
    return model_variables.place(init, model_variables.copy(given), mesh)

  tuned, _ = tuned_params.split(
    given.get('params', {}), start.config, lora=lora is not None
  )
  trainable, shardings = {}, {}
  for name in ('policy', 'value') if needs_value else ('policy',):
    trainable[name], shardings[name] = place(
      lambda name=name: init(name), {'params': tuned} if tuned else {}
    )
  if only_shapes:
    given, _ = place(lambda: {'params': init('params')}, {})
  frozen = {'params': frozen_dtypes.cast(given['params'], start.config)}
  if adapters is not None and not only_shapes:
    for name, role in trainable.items():
      role['lora'] = dora.with_first_magnitudes(
        role['lora'],
        shared_backbone.role_variables(frozen, role)['params'],
        shardings[name]['lora'],
      )
  modules, variables = (), ()
  if rewards:
    modules, variables = place_reward_models(rewards, start, mesh)
  frozen['rewards'] = variables
  models = dataclasses.replace(models, rewards=modules)
  trained = tree_paths.count_parameters(trainable)
  total = trained + tree_paths.count_parameters(
    {'params': frozen['params'], **{str(i): v for i, v in enumerate(variables)}}
  )
  backbone = tree_paths.count_parameters(frozen['params'])
  logging.info(
    'All roles together hold %s parameters, %.2f times one backbone; %s are '
    'trained.',
    f'{total:,}',
    total / backbone,
    f'{trained:,}',
  )
  return Roles(
    models,
    trainable,
    frozen,
    shardings,
    trained / total,
    tuple(loaded.without_weights() for loaded in rewards),
  )


def place_reward_models(
  checkpoints: Sequence[loaded_model.LoadedModel],
  shared: loaded_model.LoadedModel,
  mesh: partitioning.LogicalMesh,
) -> tuple[tuple[reward_model.RewardModel, ...], tuple[Mapping[str, Any], ...]]:
  """Puts the weights of reward models on the mesh, without a shared backbone.

  Args:
    checkpoints: reward models from `load_reward_model`.
    shared: the model whose backbone is on the mesh already.
    mesh: the mesh.

  Returns:
    The modules, and the variables of each. A reward model that uses the shared
    backbone has no `params`.
  """
  modules, variables = [], []
  for checkpoint in checkpoints:
    is_adapter = checkpoint.lora is not None
    if is_adapter and checkpoint.backbone_fingerprint == shared.fingerprint:
      checkpoint = checkpoint.on_shared(shared.config)
    else:
      logging.info(
        'The reward model %s has its own backbone, which is held in addition '
        'to the others.',
        checkpoint.path,
      )
    module, own = placed.place_reward_model(checkpoint, mesh)
    modules.append(module)
    variables.append(own)
  return tuple(modules), tuple(variables)


def _make_models(start, adapters, *, needs_value) -> shared_backbone.Models:
  """Returns policy, value model and reference, without their weights."""
  policy = encoder_decoder.make_model(start.config, adapters)
  value = policy_lib.ValueModel(policy) if needs_value else None
  reference = encoder_decoder.make_model(start.config)
  return shared_backbone.Models(policy, value, reference, ())
