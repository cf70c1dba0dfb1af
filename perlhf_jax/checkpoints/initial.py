"""The initial model of a stage: from a configuration, a checkpoint, or both."""

import dataclasses
from typing import Any

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.core import errors
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.training import partitioning


def load_initial(
  model: t5_config.T5Config | None,
  vocabulary: Any,
  lora: lora_lib.LoraConfig | None,
  initial_checkpoint_path: str | None,
  mesh: partitioning.LogicalMesh,
  *,
  base_checkpoint: str | None = None,
  initial_vit_path: str | None = None,
) -> loaded_model.LoadedModel:
  """Loads the initial checkpoint and compares it with the configuration.

  Args:
    model: the architecture; None for the checkpoint's.
    vocabulary: the tokenizer; None for the checkpoint's.
    lora: the adapters; None for full tuning.
    initial_checkpoint_path: the checkpoint; None to start from random weights.
    mesh: where to put the weights.
    base_checkpoint: see `loading.load`.
    initial_vit_path: a SigLIP directory whose ViT is added to the checkpoint's
      T5.

  Returns:
    The model to train, with the given configuration and layout, and without
    adapters. Its `params` are None for random weights.

  Raises:
    ConfigError: there is no initial model, or configuration and checkpoint
      differ.
  """
  if initial_checkpoint_path is None:
    check_from_scratch(model, vocabulary, lora, initial_vit_path)
    return loaded_model.LoadedModel(model, vocabulary)
  loaded = loading.load_merged(initial_checkpoint_path, mesh, base_checkpoint)
  if initial_vit_path is not None:
    loaded = loading.with_vit(loaded, initial_vit_path, mesh)
  model = match(
    model,
    vocabulary,
    loaded.config,
    loaded.vocabulary,
    initial_checkpoint_path,
    adds_vit=initial_vit_path is not None,
  )
  loaded = loaded.at_image_size(model.image_size, mesh)
  return dataclasses.replace(
    loaded,
    config=model,
    vocabulary=loaded.vocabulary or vocabulary,
    params=loaded.in_layout_of(model, mesh),
  )


def check_from_scratch(
  model: t5_config.T5Config | None,
  vocabulary: Any,
  lora: lora_lib.LoraConfig | None,
  initial_vit_path: str | None = None,
) -> None:
  """Checks that a model can be trained from random weights.

  Args:
    model: the architecture.
    vocabulary: the tokenizer.
    lora: the adapters; None for full tuning.
    initial_vit_path: a SigLIP directory, or None.

  Raises:
    ConfigError: there is no model, or it cannot start from random weights.
  """
  if initial_vit_path is not None:
    raise errors.ConfigError(
      'INITIAL_VIT_PATH adds a ViT to the T5 of INITIAL_CHECKPOINT_PATH, '
      'which is None; set both.'
    )
  if lora is not None:
    raise errors.ConfigError(
      'LoRA adapts a trained model, but INITIAL_CHECKPOINT_PATH is None. Set '
      'it, or train all weights with --gin_file=gin/lora/none.gin.'
    )
  if model is None or vocabulary is None:
    raise errors.ConfigError(
      'There is no model. Give a gin/models/*.gin file to train from scratch, '
      'or set INITIAL_CHECKPOINT_PATH.'
    )
  check_vocabulary(model, vocabulary)
  if getattr(model, 'train_vit', True) is False:
    raise errors.ConfigError(
      'The ViT of this PaLI has random weights, and PaliConfig.train_vit is '
      'False, so it would never learn. Set train_vit to True, or set '
      'INITIAL_CHECKPOINT_PATH.'
    )


def check_vocabulary(model: t5_config.T5Config, vocabulary: Any) -> None:
  """Raises a ConfigError if a vocabulary has tokens that the model lacks.

  The embedding of a token beyond the table would be NaN.
  """
  if vocabulary.vocab_size > model.vocab_size:
    raise errors.ConfigError(
      f'VOCABULARY has {vocabulary.vocab_size} ids, but '
      f'T5Config.vocab_size is {model.vocab_size}; make it at least as large.'
    )


def match(
  model: t5_config.T5Config | None,
  vocabulary: Any,
  config: t5_config.T5Config,
  their_vocabulary: Any,
  path: str,
  *,
  adds_vit: bool = False,
) -> t5_config.T5Config:
  """Compares a configuration with its initial checkpoint.

  Args:
    model: the architecture; None for the checkpoint's.
    vocabulary: the tokenizer; None for the checkpoint's.
    config: the checkpoint's architecture, with the added ViT.
    their_vocabulary: the checkpoint's tokenizer; None if it has none.
    path: path of the checkpoint, for messages.
    adds_vit: whether a ViT is added to the checkpoint.

  Returns:
    The model to train.

  Raises:
    ConfigError: the two differ.
  """
  if adds_vit and not getattr(model or config, 'train_projection', True):
    raise errors.ConfigError(
      'With INITIAL_VIT_PATH, the projection of image tokens starts from '
      'random weights; set PaliConfig.train_projection to True.'
    )
  if model is None:
    model = config
  wanted, given = model.architecture(), config.architecture()
  differing = [
    f'{name} {wanted.get(name)} (checkpoint {given.get(name)})'
    for name in dict.fromkeys([*wanted, *given])
    if wanted.get(name) != given.get(name)
  ]
  if differing:
    raise errors.ConfigError(
      f'The model file and {path} are different models: '
      f'{", ".join(differing)}. Use the gin/models file of the checkpoint, or '
      'leave it out.'
    )
  if their_vocabulary is None:
    if vocabulary is None:
      raise errors.ConfigError(
        f'{path} holds no vocabulary, and VOCABULARY is None: add a file of '
        'gin/vocabularies after the gin/models file.'
      )
    check_vocabulary(model, vocabulary)
  elif vocabulary is not None and vocabulary != their_vocabulary:
    raise errors.ConfigError(
      f'VOCABULARY is {vocabulary}, but {path} was trained with '
      f"{their_vocabulary}. Leave VOCABULARY None to take the checkpoint's."
    )
  return model
