"""Averages the weights of several checkpoints."""

from collections.abc import Iterator, Sequence
import dataclasses
import os

from absl import logging
from etils import epath

from perlhf_jax.checkpoints import averages
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import recorded_paths
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.checkpoints.formats import perlhf
from perlhf_jax.core import checks
from perlhf_jax.core import versions
from perlhf_jax.training import layer_layout
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files


@checks.checked
def average(
  *,
  checkpoints: Sequence[str],
  target: str,
  base_checkpoint: str | None = None,
  mesh_shape: Sequence[int] = (-1, 1, 1),
) -> None:
  """Writes the mean of the weights of several checkpoints as a checkpoint.

  Averaged reward models are more robust than one of them (WARM,
  arXiv:2401.12187). Adapters must be of the same base and adapt the same
  layers; their ranks may differ, and the average has the sum of the ranks.
  Heads and weights that were tuned in full are averaged leaf by leaf.

  Args:
    checkpoints: several MODEL_DIRs, or steps of them, separated by commas.
    target: a new or empty folder, also a remote one.
    base_checkpoint: path of the adapters' base, if it is not where the adapters
      record it.
    mesh_shape: devices as (data, fsdp, tensor), for models that do not fit on
      one device; one of the sizes may be -1.

  Raises:
    CheckpointError: a checkpoint cannot be read, the checkpoints differ in more
      than ranks and weights, or the target cannot be written.
    ConfigError: there are fewer than two checkpoints.
  """
  mesh = partitioning.make_mesh(mesh_shape)
  averages.check([loading.peek(path, base_checkpoint) for path in checkpoints])
  perlhf.check_empty(target)
  loaded = list[loaded_model.LoadedModel]()

  def load() -> Iterator[loaded_model.LoadedModel]:
    shared = None
    for path in checkpoints:
      model = loading.load(path, mesh, base_checkpoint, shared)
      if model.lora is not None and shared is None:
        shared = model.backbone()
      loaded.append(model.without_weights())
      yield model

  mean = averages.average(load(), mesh)
  _write(mean, loaded, target)
  logging.info(
    'Wrote the average of %d checkpoints to %s.',
    len(loaded),
    os.path.abspath(target),
  )


def _write(
  mean: loaded_model.LoadedModel,
  loaded: Sequence[loaded_model.LoadedModel],
  target: str,
) -> None:
  # The layout in which such a checkpoint is read again.
  scan = mean.trained_config.scan_layers
  if mean.lora is None:
    trained = {'params': layer_layout.to_layout(mean.params, scan)}
    base = None
  else:
    trained = {
      'params': layer_layout.to_layout(mean.tuned, scan),
      'lora': layer_layout.to_layout(mean.lora, scan),
    }
    model_dir = step_files.model_dir_of(epath.Path(mean.path))
    base = recorded_paths.moved(
      mean.base, model_dir, step_files.absolute(target)
    )
  perlhf.write_step(
    target,
    max(model.step for model in loaded),
    trained,
    mean.heads,
    _describe(mean, loaded, base),
  )


def _describe(mean, loaded, base) -> run_metadata.RunMetadata:
  parts = ', '.join(f'{model.path} ({model})' for model in loaded)
  return dataclasses.replace(
    mean.metadata,
    lora=mean.lora_config,
    base=base,
    policy=perlhf.own_policy(mean.metadata),
    data=None,
    eval_data=None,
    settings=None,
    changes=(),
    versions=versions.describe(),
    made_of=f'the average of {len(loaded)}: {parts}',
  )
