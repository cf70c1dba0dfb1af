"""Trained models, loaded and placed on the mesh."""

from collections.abc import Mapping
from typing import Any

import jax

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.stages import backbones
from perlhf_jax.stages import run_metadata
from perlhf_jax.training import layer_layout
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement


def require_reward_model(
  loaded: backbones.Checkpoint | backbones.Backbone, path: str
) -> backbones.Checkpoint:
  """Returns the checkpoint if it is a reward model.

  Raises:
    CheckpointError: it is something else.
  """
  if (
    isinstance(loaded, backbones.Checkpoint)
    and loaded.metadata.kind == run_metadata.REWARD
  ):
    return loaded
  raise errors.CheckpointError(
    f'{path} is a language model, not a reward model; give a MODEL_DIR of '
    'perlhf train_reward.'
  )


def place_backbone(
  checkpoint: backbones.Checkpoint | backbones.Backbone,
  mesh: partitioning.LogicalMesh,
  *,
  share_params: bool = False,
) -> tuple[t5.T5, dict[str, Any]]:
  """Makes a model of what was loaded, which is not trained any more.

  Args:
    checkpoint: what was loaded.
    mesh: the mesh.
    share_params: whether another holds the `params` of the backbone, which are
      left out but for what was trained in full.

  Returns:
    The model, and its variables `params` and perhaps `lora`, on the mesh.
  """
  lora, tuned = None, {}
  backbone = checkpoint
  if isinstance(checkpoint, backbones.Checkpoint):
    backbone, lora = checkpoint.backbone, checkpoint.lora
    tuned = checkpoint.tuned
  config = backbone.config
  adapters = None
  if lora is not None:
    adapters = lora_lib.resolve(
      checkpoint.metadata.lora, encoder_decoder.dense_module_paths(config)
    )
  model = encoder_decoder.make_model(config, adapters)
  variables = {}
  params = tree_paths.overlay(
    {} if share_params else backbone.params,
    layer_layout.to_layout(tuned, config.scan_layers),
  )
  if params:
    variables['params'] = frozen_dtypes.cast(params, config)
  if lora is not None:
    boxed = jax.eval_shape(
      lambda: encoder_decoder.init_variables(model, jax.random.key(0))
    )
    variables['lora'] = placement.put(
      layer_layout.to_layout(lora, config.scan_layers),
      partitioning.shardings_of(boxed['lora'], mesh),
    )
  return model, variables


def place_reward_model(
  checkpoint: backbones.Checkpoint,
  mesh: partitioning.LogicalMesh,
  *,
  share_params: bool = False,
) -> tuple[reward_model.RewardModel, Mapping[str, Any]]:
  """Makes a reward model; returns it with its variables on the mesh."""
  model, variables = place_backbone(checkpoint, mesh, share_params=share_params)
  boxed = jax.eval_shape(
    lambda: reward_model.init_heads(model.config, jax.random.key(0))
  )
  heads = placement.put(
    checkpoint.heads, partitioning.shardings_of(boxed, mesh)
  )
  return reward_model.RewardModel(model), {**variables, 'heads': heads}
