"""Backbones to start from: ours or Hugging Face's, LoRA ones merged."""

from collections.abc import Mapping
import dataclasses
import hashlib
from typing import Any

from absl import logging
from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import merge
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config
from perlhf_jax.stages import run_metadata
from perlhf_jax.training import checkpoints
from perlhf_jax.training import fingerprint as fingerprint_lib
from perlhf_jax.training import layer_layout

# Largest |Δlogit| that merging SFT adapters may make, in float32.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Backbone:
  """Weights on the host, with what is needed to use them.

  Attributes:
    path: where they come from.
    config: the architecture.
    params: unrolled tree of numpy arrays.
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


def load_checkpoint(
  path: str, base_checkpoint: str | None = None
) -> Checkpoint | Backbone:
  """Loads a checkpoint of ours, or a Hugging Face T5 directory.

  Args:
    path: MODEL_DIR (newest step), MODEL_DIR/checkpoints/<step or 'best'>, or
      a Hugging Face directory.
    base_checkpoint: where the base of an adapter lies now, if it has moved.

  Returns:
    A `Checkpoint`, or a bare `Backbone` for a Hugging Face directory.

  Raises:
    CheckpointError: nothing usable there, or an adapter without its base.
  """
  step = checkpoints.find_step(path)
  if step is None:
    if hf.is_hf_directory(path):
      return _load_hf(path)
    if not epath.Path(path).is_dir():
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
  trainable = checkpoints.read_trainable(step)
  if metadata.kind == run_metadata.POLICY:
    # The value model is of use to training only.
    trainable = trainable['policy']
  trainable = {
    name: layer_layout.to_layout(tree, scan_layers=False)
    for name, tree in trainable.items()
  }
  if metadata.tuning == 'lora':
    backbone = load_recorded(
      metadata.base, f'The adapter {step}', 'base', base_checkpoint
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
  return Checkpoint(
    backbone=backbone,
    metadata=metadata,
    lora=trainable.get('lora'),
    heads=trainable.get('heads', {}),
    step_path=str(step),
  )


def load_backbone(path: str) -> Backbone:
  """Loads weights to start a stage from; SFT adapters are merged.

  Raises:
    CheckpointError: as `load_checkpoint`, or the checkpoint is a reward model.
  """
  loaded = load_checkpoint(path)
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
  merged, report = merge.merge_and_check(
    t5.T5(config, adapters),
    layer_layout.to_layout(base.params, config.scan_layers),
    layer_layout.to_layout(loaded.lora, config.scan_layers),
    tolerance=_TOLERANCE,
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
    params=layer_layout.to_layout(merged, scan_layers=False),
    fingerprint=hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16],
    metadata=loaded.metadata,
  )


def _load_hf(path: str) -> Backbone:
  config = hf.load_config(path)
  params = hf.load_params(path, config)
  return Backbone(
    path=path,
    config=config,
    params=params,
    vocabulary=vocabularies.load_from_hf_directory(path),
    fingerprint=fingerprint_lib.fingerprint(params),
  )


def load_recorded(
  recorded: Mapping[str, str],
  owner: str,
  role: str,
  moved_to: str | None = None,
) -> Backbone:
  """Loads a backbone that a checkpoint names by path and fingerprint.

  Args:
    recorded: `{'path', 'fingerprint'}`.
    owner: what was trained on it, for messages.
    role: what it is there, for messages.
    moved_to: where it lies now.

  Raises:
    CheckpointError: it is not there, or is not what it was.
  """
  where = moved_to or recorded['path']
  wanted = f'{recorded["path"]} (fingerprint {recorded["fingerprint"]})'
  try:
    base = load_backbone(where)
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
