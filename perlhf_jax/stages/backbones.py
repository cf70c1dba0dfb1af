"""Backbones to start from: ours or Hugging Face's, LoRA ones merged.

Weights are read straight onto the mesh: no host ever holds a whole model.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf
from perlhf_jax.interop import remote_files
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import merge
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config
from perlhf_jax.stages import run_metadata
from perlhf_jax.training import checkpoints
from perlhf_jax.training import fingerprint as fingerprint_lib
from perlhf_jax.training import layer_layout
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# Largest |Δlogit| that merging SFT adapters may make, in float32.
_TOLERANCE = 1e-3


@dataclasses.dataclass
class Backbone:
  """Weights on the mesh, with what is needed to use them.

  Attributes:
    path: where they come from.
    config: the architecture, and the layout of `params`.
    params: float32 arrays, split as their logical axes say.
    vocabulary: the tokenizer.
    fingerprint: identifies the content; see `training.fingerprint`.
    metadata: of the checkpoint; None for a Hugging Face directory.
  """

  path: str
  config: t5_config.T5Config
  params: Mapping[str, Any]
  vocabulary: Any
  fingerprint: str
  metadata: run_metadata.RunMetadata | None = None

  def in_layout_of(
    self, config: t5_config.T5Config, mesh: partitioning.LogicalMesh
  ) -> Mapping[str, Any]:
    """Returns `params` in the layout of another configuration."""
    return layer_layout.to_layout(
      self.params, config.scan_layers, params_shardings(config, mesh)
    )

  def release(self) -> None:
    """Lets go of `params`, once all models are made of them.

    What trains was copied, and what is frozen may have been cast.
    """
    self.params = {}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A trained step: a backbone, and what was trained on it.

  Attributes:
    backbone: the frozen base for LoRA, the tuned weights for full tuning.
    metadata: of the step.
    lora: unrolled adapters, or None.
    heads: heads by name, empty where there are none.
    step_path: folder of the step.
  """

  backbone: Backbone
  metadata: run_metadata.RunMetadata
  lora: Mapping[str, Any] | None
  heads: Mapping[str, Any]
  step_path: str


def params_shardings(
  config: t5_config.T5Config, mesh: partitioning.LogicalMesh
) -> Mapping[str, Any]:
  """Returns the sharding of every parameter of a backbone."""
  model = t5.T5(config)
  boxed = jax.eval_shape(lambda: t5.init_variables(model, jax.random.key(0)))
  return partitioning.shardings_of(boxed['params'], mesh)


def load_checkpoint(
  path: str,
  mesh: partitioning.LogicalMesh,
  base_checkpoint: str | None = None,
  shared: Backbone | None = None,
) -> Checkpoint | Backbone:
  """Loads a checkpoint of ours, or a Hugging Face T5 directory.

  Args:
    path: MODEL_DIR (newest step), MODEL_DIR/checkpoints/<step or 'best'>, or
      a Hugging Face directory.
    mesh: where to put the weights.
    base_checkpoint: where the base of an adapter lies now, if it has moved.
    shared: a backbone that is loaded already. An adapter that was trained on
      it gets it, and nothing is read twice.

  Returns:
    A `Checkpoint`, or a bare `Backbone` for a Hugging Face directory.

  Raises:
    CheckpointError: nothing usable there, or an adapter without its base.
  """
  with remote_files.explained(path):
    step = checkpoints.find_step(path)
    is_directory = step is not None or epath.Path(path).is_dir()
  if step is None:
    if hf.is_hf_directory(path):
      return _load_hf(path, mesh)
    if not is_directory:
      raise errors.CheckpointError(
        f'No checkpoint at {path}: there is no such folder. Give a MODEL_DIR, '
        'one of its checkpoints/<step> folders, or a Hugging Face T5 directory '
        '(a model of the Hub is downloaded first: hf download NAME '
        '--local-dir=DIR).'
      )
    raise errors.CheckpointError(
      f'{path} is no checkpoint: it has neither checkpoints/<step>/ of '
      'perlhf_jax nor the config.json of a Hugging Face model.'
    )
  metadata = run_metadata.from_json(checkpoints.read_metadata(step), str(step))
  is_lora = metadata.tuning == 'lora'
  trainable = checkpoints.read_trainable(
    step,
    # The value model is of use to training only.
    role='policy' if metadata.kind == run_metadata.POLICY else None,
    params_shardings=None
    if is_lora
    else params_shardings(metadata.model, mesh),
  )
  if is_lora:
    backbone = shared
    if shared is None or shared.fingerprint != metadata.base['fingerprint']:
      backbone = load_recorded(
        metadata.base, f'The adapter {step}', 'base', mesh, base_checkpoint
      )
  else:
    backbone = Backbone(
      path=str(step),
      config=metadata.model,
      params=trainable['params'],
      vocabulary=metadata.vocabulary,
      fingerprint=fingerprint_lib.fingerprint(trainable['params']),
      metadata=metadata,
    )
  lora = trainable.get('lora')
  if lora is not None:
    lora = layer_layout.to_layout(lora, scan_layers=False)
  return Checkpoint(
    backbone=backbone,
    metadata=metadata,
    lora=lora,
    heads=trainable.get('heads', {}),
    step_path=str(step),
  )


def load_backbone(path: str, mesh: partitioning.LogicalMesh) -> Backbone:
  """Loads weights to start a stage from; SFT adapters are merged.

  Raises:
    CheckpointError: as `load_checkpoint`, or the checkpoint is a reward model.
  """
  loaded = load_checkpoint(path, mesh)
  if isinstance(loaded, Backbone):
    return loaded
  if loaded.metadata.kind == run_metadata.REWARD:
    raise errors.CheckpointError(
      f'{path} is a reward model. A stage starts from a language model: give '
      'an SFT checkpoint or a Hugging Face T5 directory as '
      'INITIAL_CHECKPOINT_PATH.'
    )
  if loaded.lora is None:
    return loaded.backbone
  base, lora = loaded.backbone, loaded.metadata.lora
  # In the layout it was trained in, which its target_modules may name.
  config = dataclasses.replace(loaded.metadata.model, dtype='float32')
  adapters = lora_lib.resolve(lora, t5.dense_module_paths(config))
  params = base.in_layout_of(config, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
  with partitioning.use_mesh(mesh):
    merged, report = merge.merge_and_check(
      t5.T5(config, adapters),
      params,
      layer_layout.to_layout(loaded.lora, config.scan_layers),
      tolerance=_TOLERANCE,
      shardings=shardings,
    )
  logging.info(
    'Merged the adapters of %s into their base: logits change by at most %.2g.',
    path,
    report.max_logit_difference,
  )
  # Named by its parts: the sum's last bits depend on the machine that adds.
  parts = (
    base.fingerprint,
    fingerprint_lib.fingerprint(loaded.lora),
    repr(lora.scale),
  )
  return dataclasses.replace(
    base,
    path=loaded.step_path,
    config=dataclasses.replace(base.config, scan_layers=config.scan_layers),
    params=merged,
    fingerprint=hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16],
    metadata=loaded.metadata,
  )


def _load_hf(path: str, mesh: partitioning.LogicalMesh) -> Backbone:
  config = hf.load_config(path)
  directory = error = None
  try:
    directory = hf.local_directory(path)
  except errors.CheckpointError as e:
    error = e
  # One host may have no room for a copy of a remote directory.
  multihost.raise_together(error)
  shardings = tree_paths.flatten(params_shardings(config, mesh))
  with remote_files.named(path, directory):
    params = hf.load_params(
      directory, config, lambda name, leaf: placement.put(leaf, shardings[name])
    )
    vocabulary = vocabularies.load_from_hf_directory(str(directory))
  return Backbone(
    path=path,
    config=config,
    params=params,
    vocabulary=vocabulary,
    fingerprint=fingerprint_lib.fingerprint(params),
  )


def load_recorded(
  recorded: Mapping[str, str],
  owner: str,
  role: str,
  mesh: partitioning.LogicalMesh,
  moved_to: str | None = None,
) -> Backbone:
  """Loads a backbone that a checkpoint names by path and fingerprint.

  Args:
    recorded: `{'path', 'fingerprint'}`.
    owner: what was trained on it, for messages.
    role: what it is there, for messages.
    mesh: where to put the weights.
    moved_to: where it lies now.

  Raises:
    CheckpointError: it is not there, or is not what it was.
  """
  where = moved_to or recorded['path']
  wanted = f'{recorded["path"]} (fingerprint {recorded["fingerprint"]})'
  try:
    base = load_backbone(where, mesh)
  except errors.CheckpointError as error:
    raise errors.CheckpointError(
      f'{owner} needs its {role} {wanted}, which cannot be loaded: {error} '
      'If it has moved, say where with --base_checkpoint=DIR.'
    ) from error
  if base.fingerprint != recorded['fingerprint']:
    raise errors.CheckpointError(
      f'{owner} was trained on the {role} {wanted}, but {where} has '
      f'fingerprint {base.fingerprint}. Give the right one with '
      '--base_checkpoint=DIR.'
    )
  return base
