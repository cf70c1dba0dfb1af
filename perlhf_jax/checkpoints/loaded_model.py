"""A loaded model: a checkpoint's weights on the mesh, and their description."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import jax
import numpy as np

from perlhf_jax.checkpoints import recorded_paths
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.data import feature_converters
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import token_ids
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import resolution
from perlhf_jax.models import t5_config
from perlhf_jax.training import layer_layout
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

BASE_PATH = 'base_path'
VIT_PATH = 'vit_path'
_POSITIONS = 'vit/pos_embedding'
_KEEP_END = 'keep_end'
# A merged model does not record what its adapters were.
_TUNINGS = {
  run_metadata.MERGED: 'LoRA, merged',
  run_metadata.FULL: 'full tuning',
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
  """A model: its weights, and the information needed to use them.

  Only the function that loads a model keeps it. Longer-lived objects made from
  it, such as the training state, keep at most `without_weights`.

  Attributes:
    config: the architecture, and the layout of `params`. None for adapters that
      do not record it, until their base is known.
    vocabulary: the tokenizer; None if unknown.
    path: the step's folder or the directory of the checkpoint; None for random
      weights.
    source: the format's title, such as 'a Hugging Face T5 directory'.
    params: all parameters, the base's for LoRA: float32 arrays on the mesh,
      sharded by their logical axes, or `stored.Stored` in a model that is only
      written. None for random weights, or if another model holds them.
    lora: unrolled adapters, or None.
    lora_config: the configuration of the adapters.
    tuned: unrolled parameters that were trained in full beside adapters, on the
      mesh; they replace those in `params`.
    heads: heads by name; empty if there are none.
    kind: `sft`, `reward` or `policy`; None if the format does not record it.
    metadata: the metadata of our own checkpoints; None for other formats.
    base: the base, as `describe` returns it, with the `path` where it was
      found; None if the checkpoint holds every weight itself.
    base_path: the path of its base, if the user gave one.
    vit_path: the path of its ViT, if from another checkpoint; `params` then
      have no projection of image tokens yet.
    backbone_fingerprint: identifies `params`; see `training.fingerprint`.
    fingerprint: identifies all weights: `params`, adapters, tuned parameters
      and heads.
  """

  config: t5_config.T5Config | None
  vocabulary: Any = None
  path: str | None = None
  source: str = ''
  params: Mapping[str, Any] | None = None
  lora: Mapping[str, Any] | None = None
  lora_config: lora_lib.LoraConfig | None = None
  tuned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  heads: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  kind: str | None = None
  metadata: run_metadata.RunMetadata | None = None
  base: Mapping[str, str] | None = None
  base_path: str | None = None
  vit_path: str | None = None
  backbone_fingerprint: str | None = None
  fingerprint: str | None = None

  def __str__(self):
    if self.metadata is None:
      return self.source
    objective = self.metadata.objective
    if objective is None:
      return 'a reward model' if self.is_reward_model else 'a language model'
    kinds = {
      run_metadata.SFT: 'an SFT model',
      run_metadata.REWARD: f'a {objective} reward model',
      run_metadata.POLICY: f'a policy ({objective})',
    }
    if self.metadata.tuning == run_metadata.LORA:
      tuning = self.metadata.lora.method
    else:
      tuning = _TUNINGS[self.metadata.tuning]
    return f'{kinds[self.kind]}, {tuning}, step {self.step}'

  @property
  def is_reward_model(self) -> bool:
    """Whether it is a reward model, which scores text instead of writing it."""
    return self.kind == run_metadata.REWARD

  @property
  def step(self) -> int:
    """The training step; 0 if unknown."""
    name = '' if self.path is None else epath.Path(self.path).name
    return int(name) if self.metadata is not None and name.isdecimal() else 0

  @property
  def lengths(self) -> Mapping[str, int]:
    """The length of each feature in training, in tokens; empty if unknown."""
    return {} if self.metadata is None else self.metadata.task_feature_lengths

  @property
  def truncate_prompt(self) -> str:
    """Which end of a long prompt training kept."""
    return _KEEP_END if self.metadata is None else self.metadata.truncate_prompt

  @property
  def trained_config(self) -> t5_config.T5Config:
    """The configuration in training, whose layout names the modules."""
    return self.config if self.metadata is None else self.metadata.model

  def without_weights(self) -> 'LoadedModel':
    """Returns the model without its weights, for objects that live long."""
    return dataclasses.replace(self, params=None, lora=None, tuned={}, heads={})

  def backbone(self) -> 'LoadedModel':
    """Returns the frozen base alone, without trained weights."""
    return LoadedModel(
      config=self.config,
      vocabulary=self.vocabulary,
      path=None if self.base is None else self.base['path'],
      params=self.params,
      backbone_fingerprint=self.backbone_fingerprint,
      fingerprint=self.backbone_fingerprint,
    )

  def on_shared(self, config: t5_config.T5Config) -> 'LoadedModel':
    """Returns the model for use with another model that holds its `params`.

    Args:
      config: the configuration of the other model, which gives the layout of
        `params`.
    """
    return dataclasses.replace(self, config=config, params=None)

  def in_layout_of(
    self, config: t5_config.T5Config, mesh: partitioning.LogicalMesh
  ) -> Mapping[str, Any]:
    """Returns `params` in the layout of another configuration."""
    return layer_layout.to_layout(
      self.params, config.scan_layers, params_shardings(config, mesh)
    )

  def at_image_size(
    self, image_size: int | None, mesh: partitioning.LogicalMesh
  ) -> 'LoadedModel':
    """Returns the model with position embeddings resized to an image size."""
    if image_size == self.config.image_size:
      return self
    config = self.config.with_image_size(image_size)
    if self.params is None:
      return dataclasses.replace(self, config=config)
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
    """Returns the record of this model for a run in `model_dir`.

    `loading.load_recorded` reads the record.
    """
    recorded = recorded_paths.describe(self.path, model_dir)
    for name, path in (BASE_PATH, self.base_path), (VIT_PATH, self.vit_path):
      if path is not None:
        recorded |= recorded_paths.describe(path, model_dir, name)
    return {**recorded, 'fingerprint': self.fingerprint}

  def tokenize(self, text: str, where: str) -> np.ndarray:
    """Returns the tokens of a text with EOS, int32 `[length]`.

    Args:
      text: a prompt or a response.
      where: a name of the text, for the message.

    Raises:
      DataError: the model lacks one of the tokens.
    """
    tokens = feature_converters.tokenize(self.vocabulary, text)
    num_ids = self.config.vocab_size
    for _, bad in token_ids.find_bad([tokens], num_ids):
      raise errors.DataError(
        token_ids.describe(bad, where, num_ids, f'the model {self.path}')
        + '. Its vocabulary belongs to another model.'
      )
    return tokens

  def load_examples(
    self, dataset: input_pipeline.DatasetConfig
  ) -> input_pipeline.Examples:
    """Reads a split with this model's tokenizer and image size.

    Raises:
      DataError: see `input_pipeline.load_examples`; or the model lacks a token.
    """
    examples = input_pipeline.load_examples(
      dataset, self.vocabulary, self.config.image_size
    )
    examples.check_ids(self.config.vocab_size)
    return examples


def params_shardings(
  config: t5_config.T5Config, mesh: partitioning.LogicalMesh
) -> Mapping[str, Any]:
  """Returns the sharding of every parameter of a model without adapters."""
  model = encoder_decoder.make_model(config)
  boxed = jax.eval_shape(
    lambda: encoder_decoder.init_variables(model, jax.random.key(0))
  )
  return partitioning.shardings_of(boxed['params'], mesh)
