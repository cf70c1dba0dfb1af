"""Makes frozen models from loaded ones."""

from collections.abc import Mapping
from typing import Any

import jax

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.training import layer_layout
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement


def require_reward_model(
  loaded: loaded_model.LoadedModel, path: str
) -> loaded_model.LoadedModel:
  """Returns a loaded model if it is a reward model.

  Raises:
    CheckpointError: it is not a reward model.
  """
  if loaded.is_reward_model:
    return loaded
  raise errors.CheckpointError(
    f'{path} is a language model, not a reward model; give a MODEL_DIR of '
    'perlhf train_reward.'
  )


def place(
  loaded: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
) -> tuple[t5.T5, dict[str, Any]]:
  """Makes a model from a loaded one, without heads.

  Args:
    loaded: the loaded model; its `params` are None if another model holds them.
    mesh: the mesh.

  Returns:
    The model, and its variables `params` and perhaps `lora`, on the mesh. If
    another model holds `params`, they have only the parameters that were
    trained in full.
  """
  config = loaded.config
  adapters = None
  if loaded.lora is not None:
    adapters = lora_lib.resolve(
      loaded.lora_config, encoder_decoder.dense_module_paths(config)
    )
  model = encoder_decoder.make_model(config, adapters)
  variables = {}
  params = tree_paths.overlay(
    loaded.params or {},
    layer_layout.to_layout(loaded.tuned, config.scan_layers),
  )
  if params:
    variables['params'] = frozen_dtypes.cast(params, config)
  if loaded.lora is not None:
    boxed = jax.eval_shape(
      lambda: encoder_decoder.init_variables(model, jax.random.key(0))
    )
    variables['lora'] = placement.put(
      layer_layout.to_layout(loaded.lora, config.scan_layers),
      partitioning.shardings_of(boxed['lora'], mesh),
    )
  return model, variables


def place_reward_model(
  loaded: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
) -> tuple[reward_model.RewardModel, Mapping[str, Any]]:
  """Makes a reward model, and returns it with its variables on the mesh."""
  model, variables = place(loaded, mesh)
  boxed = jax.eval_shape(
    lambda: reward_model.init_heads(model.config, jax.random.key(0))
  )
  heads = placement.put(loaded.heads, partitioning.shardings_of(boxed, mesh))
  return reward_model.RewardModel(model), {**variables, 'heads': heads}
