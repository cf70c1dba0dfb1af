"""Converts Hugging Face's `config.json` of a T5 to and from `T5Config`."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import schemas
from perlhf_jax.models import t5_config

MODEL_TYPES = ('t5', 'mt5', 'umt5')

_CLASSES = {
  't5': 'T5ForConditionalGeneration',
  'mt5': 'MT5ForConditionalGeneration',
  'umt5': 'UMT5ForConditionalGeneration',
}
# Vocabulary size of every published mT5, which is otherwise a T5 1.1.
_MT5_VOCAB_SIZE = 250_112

# Maps fields of T5Config to keys of `config.json` that every version writes.
_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'd_model',
  'num_heads': 'num_heads',
  'num_encoder_layers': 'num_layers',
  'head_dim': 'd_kv',
  'mlp_dim': 'd_ff',
}
# Plain 'gelu' is absent: transformers means the exact GELU, but this package,
# T5X and every published T5 use the tanh approximation. 'gated-gelu' is the
# approximation in both.
_ACTIVATIONS = {
  'relu': ('relu',),
  'gelu_new': ('gelu',),
  'silu': ('silu',),
  'gated-relu': ('relu', 'linear'),
  'gated-gelu': ('gelu', 'linear'),
  'gated-gelu_new': ('gelu', 'linear'),
  'gated-silu': ('silu', 'linear'),
}
_EPSILON = 1e-6
_REMEDY = 'Take the file that belongs to the weights.'


@dataclasses.dataclass(frozen=True)
class _File:
  """The fields of a `config.json` that are read, beside the sizes.

  Keys that older files lack get the defaults of `transformers`.
  """

  model_type: Annotated[str, checks.OneOf(*MODEL_TYPES)]
  num_decoder_layers: t5_config.Layers | None = None
  feed_forward_proj: Annotated[str, checks.OneOf(*_ACTIVATIONS)] | None = None
  layer_norm_epsilon: float = _EPSILON
  dropout_rate: float = 0.1
  relative_attention_num_buckets: t5_config.Width = 32
  relative_attention_max_distance: t5_config.Width = 128
  tie_word_embeddings: bool | None = None
  scale_decoder_outputs: bool | None = None


def to_t5_config(raw: Mapping[str, Any], source: str) -> t5_config.T5Config:
  """Translates the contents of a `config.json`.

  Args:
    raw: the parsed file.
    source: the file's path, for messages.

  Returns:
    A config in float32 with unrolled layers.

  Raises:
    CheckpointError: the model is not a T5, or a T5 that `T5Config` cannot
      express; a size is missing; a value has the wrong type or is out of range.
  """
  model_type = raw.get('model_type')
  if model_type not in MODEL_TYPES:
    raise errors.CheckpointError(
      f'{source}: model_type is {checks.shown(model_type)}; supported are '
      f'{", ".join(MODEL_TYPES)} (T5 v1.0 and v1.1, Flan-T5, LM-adapted T5, '
      'ByT5, mT5, UMT5).'
    )
  missing = [key for key in _SIZES.values() if not _is_size(raw.get(key))]
  if missing:
    raise errors.CheckpointError(
      f'{source}: no positive whole number under {", ".join(missing)}; a T5 '
      f'config.json holds {", ".join(_SIZES.values())}. {_REMEDY}'
    )
  file = schemas.make(_File, raw, source, remedy=_REMEDY)
  if file.layer_norm_epsilon != _EPSILON:
    raise errors.CheckpointError(
      f'{source}: layer_norm_epsilon is {file.layer_norm_epsilon}; only '
      f'{_EPSILON}, the value of every published T5, is supported.'
    )
  projection = file.feed_forward_proj or (
    'relu' if model_type == 't5' else 'gated-gelu'
  )
  with schemas.blamed_on(source, errors.CheckpointError, _REMEDY):
    return t5_config.T5Config(
      **{field: raw[key] for field, key in _SIZES.items()},
      num_decoder_layers=file.num_decoder_layers or raw['num_layers'],
      mlp_activations=_ACTIVATIONS[projection],
      dropout_rate=file.dropout_rate,
      logits_via_embedding=_is_scaled(file, source),
      relative_attention_num_buckets=file.relative_attention_num_buckets,
      relative_attention_max_distance=file.relative_attention_max_distance,
      relpos_bias_per_layer=model_type == 'umt5',
    )


def is_tied(raw: Mapping[str, Any]) -> bool:
  """Whether the file says that the output layer is the embedding matrix.

  Args:
    raw: the parsed file, which `to_t5_config` has accepted.
  """
  return _ties(raw['model_type'], raw.get('tie_word_embeddings'))


def _ties(model_type: str, tied: bool | None) -> bool:
  return model_type != 'mt5' if tied is None else tied


def _is_size(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_scaled(file: _File, source: str) -> bool:
  """Whether logits are divided by sqrt(d_model), as only in a tied T5.

  transformers 4 scales the logits of tied models. transformers 5 writes every
  model as tied, even a T5 1.1 with its own output layer, and says under
  `scale_decoder_outputs` whether logits are scaled; it never scales mT5.
  """
  if file.model_type == 'mt5':
    return False
  tied, scaled = (
    _ties(file.model_type, file.tie_word_embeddings),
    file.scale_decoder_outputs,
  )
  if scaled is None:
    return tied
  if scaled and not tied:
    raise errors.CheckpointError(
      f'{source}: scale_decoder_outputs is true though tie_word_embeddings is '
      'false; only tied output layers are scaled. Correct whichever is wrong.'
    )
  return scaled


def from_t5_config(
  config: t5_config.T5Config, model_type: str | None = None
) -> dict[str, Any]:
  """Makes the contents of a `config.json` for `transformers`.

  Args:
    config: the model's configuration.
    model_type: one of `MODEL_TYPES`; None for the type under which such models
      are published.

  Raises:
    CheckpointError: `transformers` has no T5 of this architecture.
  """
  model_type = model_type or _usual_type(config)
  _check_type(config, model_type)
  projections = {
    # The first name of each pair in _ACTIVATIONS wins.
    activations: name
    for name, activations in reversed(_ACTIVATIONS.items())
  }
  if config.mlp_activations not in projections:
    raise errors.CheckpointError(
      f'T5Config.mlp_activations is {config.mlp_activations}, which a Hugging '
      'Face T5 cannot express; it has '
      f'{", ".join(map(str, projections))}.'
    )
  return {
    'architectures': [_CLASSES[model_type]],
    'decoder_start_token_id': 0,
    'dropout_rate': config.dropout_rate,
    'eos_token_id': 1,
    'feed_forward_proj': projections[config.mlp_activations],
    'initializer_factor': 1.0,
    'is_encoder_decoder': True,
    'layer_norm_epsilon': _EPSILON,
    'model_type': model_type,
    'num_decoder_layers': config.num_decoder_layers,
    'pad_token_id': 0,
    'relative_attention_max_distance': config.relative_attention_max_distance,
    'relative_attention_num_buckets': config.relative_attention_num_buckets,
    'tie_word_embeddings': config.logits_via_embedding,
    'use_cache': True,
  } | {key: getattr(config, field) for field, key in _SIZES.items()}


def _usual_type(config: t5_config.T5Config) -> str:
  if config.relpos_bias_per_layer:
    return 'umt5'
  return 'mt5' if config.vocab_size == _MT5_VOCAB_SIZE else 't5'


def _check_type(config: t5_config.T5Config, model_type: str) -> None:
  if model_type not in MODEL_TYPES:
    raise errors.CheckpointError(
      f'{model_type!r} is not a model_type that can be written; choose one of '
      f'{", ".join(MODEL_TYPES)}.'
    )
  if config.relpos_bias_per_layer != (model_type == 'umt5'):
    raise errors.CheckpointError(
      f'T5Config.relpos_bias_per_layer is {config.relpos_bias_per_layer}, and '
      f'a {model_type} has one position bias '
      f'{"per layer" if model_type == "umt5" else "per stack"}; write it as a '
      f'{_usual_type(config)}.'
    )
  if config.logits_via_embedding and model_type == 'mt5':
    raise errors.CheckpointError(
      'T5Config.logits_via_embedding is set, but an mt5 does not divide its '
      'logits by sqrt(d_model); write it as a t5.'
    )
