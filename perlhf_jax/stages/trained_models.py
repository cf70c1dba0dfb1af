"""Trained models, loaded and placed on the mesh."""

from collections.abc import Mapping
from typing import Any

import jax

from perlhf_jax.core import errors
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.stages import backbones
from perlhf_jax.stages import run_metadata
from perlhf_jax.training import layer_layout
from perlhf_jax.training import partitioning


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
  mesh: jax.sharding.Mesh,
  *,
  share_params: bool = False,
) -> tuple[t5.T5, dict[str, Any]]:
  """Puts a backbone, and adapters if there are any, on the mesh.

  Args:
    checkpoint: what to place.
    mesh: the mesh.
    share_params: whether `params` are on the mesh already, and are left out.

  Returns:
    The model, and its variables `params` and perhaps `lora`.
  """
  lora = None
  backbone = checkpoint
  if isinstance(checkpoint, backbones.Checkpoint):
    backbone, lora = checkpoint.backbone, checkpoint.lora
  config = backbone.config
  adapters = None
  if lora is not None:
    adapters = lora_lib.resolve(
      checkpoint.metadata.lora, t5.dense_module_paths(config)
    )
  model = t5.T5(config, adapters)
  boxed = jax.eval_shape(lambda: t5.init_variables(model, jax.random.key(0)))
  host = {} if share_params else {'params': backbone.params}
  if lora is not None:
    host['lora'] = lora
  host = {
    name: layer_layout.to_layout(tree, config.scan_layers)
    for name, tree in host.items()
  }
  boxed = {name: boxed[name] for name in host}
  return model, jax.device_put(host, partitioning.shardings_of(boxed, mesh))


def place_reward_model(
  checkpoint: backbones.Checkpoint,
  mesh: jax.sharding.Mesh,
  *,
  share_params: bool = False,
) -> tuple[reward_model.RewardModel, Mapping[str, Any]]:
  """Puts a reward model on the mesh; returns it with its variables."""
  model, variables = place_backbone(checkpoint, mesh, share_params=share_params)
  heads = jax.device_put(checkpoint.heads, partitioning.replicated(mesh))
  return reward_model.RewardModel(model), {**variables, 'heads': heads}
