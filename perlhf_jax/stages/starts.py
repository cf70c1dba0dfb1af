"""What a stage starts from: a configuration, or a checkpoint, or both."""

import dataclasses
from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.stages import backbones
from perlhf_jax.training import partitioning


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run starts from.

  Attributes:
    config: the model to train.
    vocabulary: the tokenizer.
    backbone: initial weights; None to draw them.
  """

  config: t5_config.T5Config
  vocabulary: Any
  backbone: backbones.Backbone | None


def resolve_start(
  model: t5_config.T5Config | None,
  vocabulary: Any,
  lora: lora_lib.LoraConfig | None,
  initial_checkpoint_path: str | None,
  mesh: partitioning.LogicalMesh,
) -> Start:
  """Loads the initial checkpoint and holds it against the configuration.

  Raises:
    ConfigError: nothing to start from, or two models that differ.
  """
  if initial_checkpoint_path is None:
    if lora is not None:
      raise errors.ConfigError(
        'LoRA adapts a trained model, and INITIAL_CHECKPOINT_PATH is None. '
        'Give one, or train all weights with --gin_file=gin/lora/none.gin.'
      )
    if model is None or vocabulary is None:
      raise errors.ConfigError(
        'No model: give a gin/models/*.gin file to train from scratch, or '
        'INITIAL_CHECKPOINT_PATH.'
      )
    # A token beyond the embedding would be NaN from the first step on.
    if vocabulary.vocab_size > model.vocab_size:
      raise errors.ConfigError(
        f'VOCABULARY has {vocabulary.vocab_size} ids, but '
        f'T5Config.vocab_size is {model.vocab_size}; make it at least as large.'
      )
    return Start(model, vocabulary, None)
  backbone = backbones.load_backbone(initial_checkpoint_path, mesh)
  if model is None:
    model = backbone.config
  wanted = t5_config.architecture(model)
  given = t5_config.architecture(backbone.config)
  differing = [
    f'{name} {wanted[name]} (checkpoint {given[name]})'
    for name in wanted
    if wanted[name] != given[name]
  ]
  if differing:
    raise errors.ConfigError(
      f'The model file and {initial_checkpoint_path} are different models: '
      f'{", ".join(differing)}. Use the gin/models file of the checkpoint, or '
      'leave it out.'
    )
  if vocabulary is not None and vocabulary != backbone.vocabulary:
    raise errors.ConfigError(
      f'VOCABULARY is {vocabulary}, but {initial_checkpoint_path} was trained '
      f'with {backbone.vocabulary}. Leave VOCABULARY None to take the '
      "checkpoint's."
    )
  return Start(model, backbone.vocabulary, backbone)
