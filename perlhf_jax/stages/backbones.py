"""Backbones to start from: ours or Hugging Face's, LoRA ones merged.

Weights are read straight onto the mesh: no host ever holds a whole model.
"""

from collections.abc import Mapping, Sequence
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
from perlhf_jax.interop import siglip
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import merge
from perlhf_jax.models import pali_config
from perlhf_jax.models import resolution
from perlhf_jax.models import t5_config
from perlhf_jax.models import tuned_params
from perlhf_jax.stages import recorded_paths
from perlhf_jax.stages import run_metadata
from perlhf_jax.training import checkpoints
from perlhf_jax.training import fingerprint as fingerprint_lib
from perlhf_jax.training import layer_layout
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# Largest |Δlogit| that merging SFT adapters may make, in float32.
_TOLERANCE = 1e-3
_POSITIONS = 'vit/pos_embedding'
_VIT = 'vit_path'


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
    vit_path: where its ViT comes from, if from elsewhere; it then has no
      projection of image tokens yet, and `params` none.
  """

  path: str
  config: t5_config.T5Config
  params: Mapping[str, Any]
  vocabulary: Any
  fingerprint: str
  metadata: run_metadata.RunMetadata | None = None
  vit_path: str | None = None

  def in_layout_of(
    self, config: t5_config.T5Config, mesh: partitioning.LogicalMesh
  ) -> Mapping[str, Any]:
    """Returns `params` in the layout of another configuration."""
    return layer_layout.to_layout(
      self.params, config.scan_layers, params_shardings(config, mesh)
    )

  def at_image_size(
    self, image_size: int | None, mesh: partitioning.LogicalMesh
  ) -> 'Backbone':
    """Returns the backbone for images of another size, of the same content."""
    if image_size == self.config.image_size:
      return self
    config = self.config.with_image_size(image_size)
    flat = tree_paths.flatten(self.params)
    places = tree_paths.flatten(params_shardings(config, mesh))
    flat[_POSITIONS] = placement.put(
      resolution.resize_positions(
        placement.to_host(flat[_POSITIONS]), config.vit.num_tokens
      ),
      places[_POSITIONS],
    )
    params = tree_paths.unflatten(flat)
    return dataclasses.replace(self, config=config, params=params)

  def describe(self, model_dir: epath.Path) -> dict[str, str]:
    """Returns how a run in `model_dir` records it, for `load_recorded`."""
    recorded = recorded_paths.describe(self.path, model_dir)
    if self.vit_path is not None:
      recorded |= recorded_paths.describe(self.vit_path, model_dir, _VIT)
    return {**recorded, 'fingerprint': self.fingerprint}

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
    tuned: unrolled parameters that were trained in full beside adapters, on
      the mesh; they take the place of the base's.
    heads: heads by name, empty where there are none.
    step_path: folder of the step.
  """

  backbone: Backbone
  metadata: run_metadata.RunMetadata
  lora: Mapping[str, Any] | None
  tuned: Mapping[str, Any]
  heads: Mapping[str, Any]
  step_path: str

  def fingerprint(self) -> str:
    """Returns what identifies the base and all that was trained on it.

    Named by its parts, for a merged sum's last bits depend on the machine.
    """
    parts = [self.backbone.fingerprint]
    if self.lora is not None:
      scale = self.metadata.lora.scale
      parts += [fingerprint_lib.fingerprint(self.lora), repr(scale)]
    parts += [
      fingerprint_lib.fingerprint(tree)
      for tree in (self.tuned, self.heads)
      if tree
    ]
    return _combine(parts)

  def describe(self, model_dir: epath.Path) -> dict[str, str]:
    """Returns how a run in `model_dir` records this checkpoint."""
    return {
      **recorded_paths.describe(self.step_path, model_dir),
      'fingerprint': self.fingerprint(),
    }


def params_shardings(
  config: t5_config.T5Config, mesh: partitioning.LogicalMesh
) -> Mapping[str, Any]:
  """Returns the sharding of every parameter of a backbone."""
  model = encoder_decoder.make_model(config)
  boxed = jax.eval_shape(
    lambda: encoder_decoder.init_variables(model, jax.random.key(0))
  )
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
      is_file = epath.Path(path).exists()
      missing = 'it is a file' if is_file else 'there is no such folder'
      raise errors.CheckpointError(
        f'No checkpoint at {path}: {missing}. Give a MODEL_DIR, '
        'one of its checkpoints/<step> folders, or a Hugging Face T5 directory '
        '(a model of the Hub is downloaded first: hf download NAME '
        '--local-dir=DIR).'
      )
    raise errors.CheckpointError(
      f'{path} is no checkpoint: it has neither checkpoints/<step>/ of '
      'perlhf_jax nor the config.json of a Hugging Face model.'
    )
  metadata = run_metadata.from_json(checkpoints.read_metadata(step), str(step))
  config, is_lora = metadata.model, metadata.tuning == 'lora'
  places, _ = tuned_params.split(
    params_shardings(config, mesh), config, lora=is_lora
  )
  trainable = checkpoints.read_trainable(
    step,
    # The value model is of use to training only.
    role='policy' if metadata.kind == run_metadata.POLICY else None,
    params_shardings=places,
  )
  base = None
  if metadata.base is not None:
    base = shared
    if shared is None or shared.fingerprint != metadata.base['fingerprint']:
      what = 'adapter' if is_lora else 'checkpoint'
      base = load_recorded(
        metadata.base, f'The {what}', step, 'base', mesh, base_checkpoint
      )
    base = base.at_image_size(config.image_size, mesh)
  params = trainable.get('params', {})
  if is_lora:
    backbone = base
  else:
    if base is not None:
      _, kept = tuned_params.split(
        base.in_layout_of(config, mesh), config, lora=False
      )
      params = tree_paths.overlay(kept, params)
    backbone = Backbone(
      path=str(step),
      config=config,
      params=params,
      vocabulary=metadata.vocabulary,
      fingerprint=fingerprint_lib.fingerprint(params),
      metadata=metadata,
    )
  lora = trainable.get('lora')
  if lora is not None:
    lora = layer_layout.to_layout(lora, scan_layers=False)
  return Checkpoint(
    backbone=backbone,
    metadata=metadata,
    lora=lora,
    tuned=layer_layout.to_layout(params, scan_layers=False) if is_lora else {},
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
  adapters = lora_lib.resolve(lora, encoder_decoder.dense_module_paths(config))
  params = tree_paths.overlay(
    base.in_layout_of(config, mesh),
    layer_layout.to_layout(loaded.tuned, config.scan_layers),
  )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
  with partitioning.use_mesh(mesh):
    merged, report = merge.merge_and_check(
      encoder_decoder.make_model(config, adapters),
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
  return dataclasses.replace(
    base,
    path=loaded.step_path,
    config=dataclasses.replace(base.config, scan_layers=config.scan_layers),
    params=merged,
    fingerprint=loaded.fingerprint(),
    vit_path=None,  # It is a part of the step now.
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


def with_vit(
  backbone: Backbone, path: str, mesh: partitioning.LogicalMesh
) -> Backbone:
  """Puts the ViT of a SigLIP directory in front of a T5.

  Args:
    backbone: the T5.
    path: of the SigLIP directory.
    mesh: where to put the weights.

  Raises:
    CheckpointError: the backbone has a ViT already, or there is no SigLIP.
  """
  config = pali_config.in_front_of(
    backbone.config, siglip.load_config(path), backbone.path
  )
  # SigLIP's blocks are unrolled, whatever the layout of the T5 is.
  unrolled = dataclasses.replace(config, scan_layers=False)
  places = tree_paths.flatten(params_shardings(unrolled, mesh)['vit'])
  vit = siglip.load_params(
    path, config.vit, lambda name, leaf: placement.put(leaf, places[name])
  )
  parts = backbone.fingerprint, fingerprint_lib.fingerprint({'vit': vit})
  vit = layer_layout.to_layout(
    {'vit': vit}, config.scan_layers, params_shardings(config, mesh)
  )
  return dataclasses.replace(
    backbone,
    config=config,
    params={**backbone.params, **vit},
    fingerprint=_combine(parts),
    vit_path=path,
  )


def _combine(parts: Sequence[str]) -> str:
  """A fingerprint of what is named by its parts."""
  return hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]


def load_recorded(
  recorded: Mapping[str, str],
  owner: str,
  step: epath.Path,
  role: str,
  mesh: partitioning.LogicalMesh,
  moved_to: str | None = None,
) -> Backbone:
  """Loads a backbone that a checkpoint names by path and fingerprint.

  Args:
    recorded: of `Backbone.describe`.
    owner: what was trained on it, for messages.
    step: the folder of that.
    role: what it is there, for messages.
    mesh: where to put the weights.
    moved_to: where it lies now.

  Raises:
    CheckpointError: it is not there, or is not what it was.
  """
  model_dir = checkpoints.model_dir_of(step)
  vit_path = None
  if _VIT in recorded:
    vit_path, *_ = recorded_paths.candidates(recorded, model_dir, _VIT)

  def load(path):
    base = load_backbone(path, mesh)
    return base if vit_path is None else with_vit(base, vit_path, mesh)

  try:
    return recorded_paths.load(
      recorded,
      [moved_to]
      if moved_to
      else recorded_paths.candidates(recorded, model_dir),
      load,
      lambda base: base.fingerprint,
    )
  except errors.CheckpointError as error:
    raise errors.CheckpointError(
      f'{owner} {step} needs its {role} {recorded["path"]} (fingerprint '
      f'{recorded["fingerprint"]}), which cannot be loaded: {error} If it has '
      'moved, say where with --base_checkpoint=DIR.'
    ) from error
