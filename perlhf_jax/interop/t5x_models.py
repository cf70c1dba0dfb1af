"""T5X models that compute with our networks, for `t5x.infer` and `t5x.eval`.

Nothing in this package imports this module. T5X's gin files do; T5X's sources
must be on PYTHONPATH, and the extra `t5x` installed
(tests/oracles/t5x/README.md):

    from __gin__ import dynamic_registration
    import seqio
    from perlhf_jax.interop import t5x_models
    include 't5x/configs/runs/infer.gin'
    VOCABULARY = @seqio.SentencePieceVocabulary()
    seqio.SentencePieceVocabulary.sentencepiece_model_file = 'spiece.model'
    MODEL = @t5x_models.EncoderDecoderModel()
    t5x_models.EncoderDecoderModel:
      checkpoint = %CHECKPOINT_PATH
      input_vocabulary = %VOCABULARY
      output_vocabulary = %VOCABULARY

The checkpoint, from `interop.t5x.save` or any that `interop.t5x` reads,
determines the model. T5X's own networks read the same checkpoints; these models
compute exactly what this package computes. Activations that shapes do not
determine need a `config`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import core
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
from t5x import decoding
from t5x import models

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import t5x
from perlhf_jax.interop import t5x_names
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import kv_cache
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5_config


class EncoderDecoderModel(models.EncoderDecoderModel):
  """A T5 of this package, with T5X's interface and weights.

  Weights have the names and shapes of the T5X network that has the model, so
  that T5X can restore and shard them.
  """

  def __init__(
    self,
    input_vocabulary: Any,
    output_vocabulary: Any,
    checkpoint: str | None = None,
    config: t5_config.T5Config | None = None,
    dtype: str | None = None,
    optimizer_def: Any = None,
    **settings: Any,
  ):
    """Makes the model.

    Args:
      input_vocabulary: a `seqio.Vocabulary`.
      output_vocabulary: the same.
      checkpoint: T5X checkpoint that determines the model, instead of `config`.
      config: configuration of the model, instead of `checkpoint`.
      dtype: dtype of activations; None for that of `config`, or float32.
      optimizer_def: T5X's optimizer; not needed by `infer` and `eval`.
      **settings: other arguments of `t5x.models.EncoderDecoderModel`, such as
        `decode_fn`.

    Raises:
      CheckpointError: `checkpoint` is not a checkpoint of a T5.
      ConfigError: neither checkpoint nor config is given, or both.
    """
    if (checkpoint is None) == (config is None):
      raise errors.ConfigError(
        't5x_models.EncoderDecoderModel takes a checkpoint or a config; give '
        'one of the two.'
      )
    if config is None:
      config, self._form = t5x.load_config_and_form(checkpoint)
    else:
      self._form = t5x_names.native_form(config)
    # Layers are unrolled below, whatever the form of the weights.
    config = dataclasses.replace(
      config, dtype=dtype or config.dtype, scan_layers=False
    )
    super().__init__(
      module=encoder_decoder.make_model(config),
      input_vocabulary=input_vocabulary,
      output_vocabulary=output_vocabulary,
      optimizer_def=optimizer_def,
      **settings,
    )

  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, Any],
    input_types: Mapping[str, Any] | None = None,
  ) -> core.FrozenDict:
    """Returns random `params`, and their axis names for T5X."""
    del input_shapes, input_types
    boxed = encoder_decoder.init_variables(self.module, rng)['params']
    flat = tree_paths.flatten(boxed)
    parts: dict[str, list[jax.Array]] = {}
    axes = {}
    for source in self._sources():
      shape, names = list(source.tensor_shape), list(flat[source.path].names)
      if self._form.heads_apart and 'joined_kv' in names:
        where = names.index('joined_kv')
        names[where : where + 1] = 'heads', 'kv'
      if source.layer is not None:
        shape[t5x_names.LAYER_AXIS] = 1
        names.insert(t5x_names.LAYER_AXIS, 'layers')
      part = flat[source.path].unbox().reshape(shape)
      parts.setdefault(source.tensor, []).append(part)
      metadata = flax_partitioning.AxisMetadata(tuple(names))
      axes[f'{source.tensor}_axes'] = metadata
    params = {
      name: jnp.concatenate(part, t5x_names.LAYER_AXIS)
      if len(part) > 1
      else part[0]
      for name, part in parts.items()
    }
    return core.freeze(
      {
        'params': tree_paths.unflatten(params),
        'params_axes': tree_paths.unflatten(axes),
      }
    )

  def _sources(self) -> tuple[t5x_names.Source, ...]:
    return t5x_names.sources(self.module.config, self._form)

  def _variables(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns T5X's weights as the variables of our module."""
    flat = tree_paths.flatten(params)
    ours = {}
    for source in self._sources():
      leaf = flat[source.tensor]
      if source.layer is not None:
        leaf = jnp.take(leaf, source.layer, t5x_names.LAYER_AXIS)
      ours[source.path] = leaf.reshape(source.shape)
    return {'params': tree_paths.unflatten(ours)}

  def _compute_logits(
    self,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None = None,
    mutable: Any = False,
    other_variables: Mapping[str, Any] | None = None,
  ) -> Any:
    """Returns float32 logits `[batch, length, vocab]`."""
    if 'encoder_segment_ids' in batch:
      raise errors.ConfigError(
        't5x_models.EncoderDecoderModel reads no packed examples; set '
        'utils.DatasetConfig.pack = False.'
      )
    return self.module.apply(
      self._variables(params) | dict(other_variables or {}),
      prompts_lib.of_tokens(batch['encoder_input_tokens']),
      batch['decoder_input_tokens'],
      deterministic=dropout_rng is None,
      rngs=None if dropout_rng is None else {'dropout': dropout_rng},
      mutable=mutable,
    )

  def predict_batch_with_aux(
    self,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rng: jax.Array | None = None,
    decoder_params: Mapping[str, Any] | None = None,
    return_all_decodes: bool | None = None,
    num_decodes: int | None = None,
    prompt_with_targets: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Decodes with T5X's `decode_fn`; see T5X's method of this name."""
    if prompt_with_targets:
      raise errors.ConfigError(
        't5x_models.EncoderDecoderModel starts every response from scratch; '
        'set prompt_with_targets to False.'
      )
    defaults = self._default_decoder_params
    if num_decodes is None:
      num_decodes = defaults.num_decodes
    if return_all_decodes is None:
      return_all_decodes = defaults.return_all_decodes
    settings = dict(decoder_params or {})
    settings.setdefault('eos_id', self.output_vocabulary.eos_id or 1)
    if rng is not None:
      settings['decode_rng'] = rng
    variables = self._variables(params)
    rows, length = batch['decoder_input_tokens'].shape

    def decode_one(encoded, cache, tokens, index):
      position = kv_cache.CachePosition(index, length)
      hidden, changed = self.module.apply(
        variables | cache,
        encoded,
        tokens,
        position,
        method='decode_one',
        mutable=['cache'],
      )
      logits = self.module.apply(variables, hidden, method='logits')
      return logits[:, 0], changed['cache']

    encoded = self.module.apply(
      variables,
      prompts_lib.of_tokens(batch['encoder_input_tokens']),
      method='encode',
    )
    start = jnp.zeros((rows, 1), jnp.int32)
    # Runs the decoder's first step, which `decode_fn` repeats, to compute the
    # prompts' keys and values, which are the same for all responses.
    _, cache = decode_one(encoded, {}, start, jnp.int32(0))
    wide = jax.tree.map(
      lambda x: decoding.flat_batch_beam_expand(x, num_decodes), encoded
    )

    def tokens_to_logits(state):
      # All responses are at the same position, because none has a prefix.
      index = jnp.ravel(state.cur_index)[0]
      return decode_one(wide, {'cache': state.cache}, state.cur_token, index)

    decodes, scores = self._decode_fn(
      inputs=jnp.zeros_like(batch['decoder_input_tokens']),
      cache=cache,
      tokens_to_logits=tokens_to_logits,
      num_decodes=num_decodes,
      cache_offset=0,
      **settings,
    )
    if return_all_decodes:
      return decodes, {'scores': scores}
    # Best last.
    return decodes[:, -1], {'scores': scores[:, -1]}
