"""T5 encoder-decoders with T5X's parameter names.

One module serves T5 v1.0, v1.1 (Flan, LM-adapted), mT5 and ByT5; UMT5 differs
by one flag. Parameters follow T5X's minimal T5: 2-D attention kernels, one
relative position bias per stack. Dimension names are in `core.typing`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from perlhf_jax.core import typing
from perlhf_jax.models import attention
from perlhf_jax.models import kv_cache
from perlhf_jax.models import layers
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import repeat
from perlhf_jax.models import t5_config

_ACTIVATION_AXES = ('batch', 'length', 'embed')


class Layer(nn.Module):
  """One encoder or decoder layer; the decoder's has cross-attention.

  Attributes:
    config: the model's configuration.
    is_decoder: whether this is a decoder layer.
    adapters: resolved LoRA adapters, or None.
  """

  config: t5_config.T5Config
  is_decoder: bool
  adapters: lora_lib.Adapters | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[jax.Array, 'rows length embed'],
    self_mask_bias: Float[jax.Array, '_ 1 _ key_length'],
    distance_bias: Float[jax.Array, 'heads distances'] | None,
    encoded: Float[jax.Array, 'batch prompt_length embed'] | None,
    encoded_mask_bias: Float[jax.Array, 'batch 1 1 prompt_length'] | None,
    deterministic: bool,
    position: kv_cache.CachePosition | None,
  ) -> tuple[Float[jax.Array, 'rows length embed'], None]:
    """Maps `[batch, length, embed]` to the same; in `nn.scan`'s form."""
    config = self.config

    def norm(name, y):
      return layers.RMSNorm(dtype=config.compute_dtype, name=name)(y)

    def residual(x, y):
      y = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))(
        y, deterministic=deterministic
      )
      return nn.with_logical_constraint(x + y, _ACTIVATION_AXES)

    if config.relpos_bias_per_layer:
      distance_bias = attention.RelativePositionBias(
        config, bidirectional=not self.is_decoder, name='relpos_bias'
      )(x.shape[1], self_mask_bias.shape[-1], position)
    prefix = 'self_' if self.is_decoder else ''
    y = norm(f'pre_{prefix}attention_layer_norm', x)
    y = attention.Attention(config, self.adapters, name=f'{prefix}attention')(
      y,
      y,
      mask_bias=self_mask_bias,
      distance_bias=distance_bias,
      position=position,
      deterministic=deterministic,
    )
    x = residual(x, y)
    if self.is_decoder:
      y = norm('pre_cross_attention_layer_norm', x)
      y = attention.Attention(
        config, self.adapters, name='encoder_decoder_attention'
      )(
        y,
        encoded,
        mask_bias=encoded_mask_bias,
        keep_memory=position is not None,
        deterministic=deterministic,
      )
      x = residual(x, y)
    y = norm('pre_mlp_layer_norm', x)
    y = layers.Mlp(config, self.adapters, name='mlp')(
      y, deterministic=deterministic
    )
    return residual(x, y), None


class Stack(nn.Module):
  """The layers of the encoder or of the decoder, and their final norm.

  Attributes:
    config: the model's configuration.
    is_decoder: which of the two.
    adapters: resolved LoRA adapters, or None.
  """

  config: t5_config.T5Config
  is_decoder: bool
  adapters: lora_lib.Adapters | None = None

  def setup(self):
    config = self.config
    layers_made = repeat.make_layers(
      Layer,
      config,
      length=config.num_decoder_layers
      if self.is_decoder
      else config.num_encoder_layers,
      num_inputs=6,
      static_input=4,
      arguments=dict(
        config=config, is_decoder=self.is_decoder, adapters=self.adapters
      ),
    )
    # The attribute is the name: 'layers', or 'layers_0', 'layers_1', ...
    self.layers = layers_made[0] if config.scan_layers else layers_made
    if not config.relpos_bias_per_layer:
      self.relpos_bias = attention.RelativePositionBias(
        config, bidirectional=not self.is_decoder
      )
    norm = layers.RMSNorm(dtype=config.compute_dtype)
    if self.is_decoder:
      self.decoder_norm = norm
      if not config.logits_via_embedding:
        self.logits_dense = layers.Dense(
          features=config.vocab_size,
          kernel_axes=('embed', 'vocab'),
          dtype=config.compute_dtype,
          output_dtype=jnp.float32,
          adapters=self.adapters,
        )
    else:
      self.encoder_norm = norm
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def __call__(
    self,
    x: Float[jax.Array, 'rows length embed'],
    mask_bias: Float[jax.Array, '_ 1 _ key_length'],
    *,
    encoded: Float[jax.Array, 'batch prompt_length embed'] | None = None,
    encoded_mask_bias: Float[jax.Array, 'batch 1 1 prompt_length']
    | None = None,
    position: kv_cache.CachePosition | None = None,
    deterministic: bool,
  ) -> Float[jax.Array, 'rows length embed']:
    """Maps embeddings `[batch, length, embed]` to final hidden states."""
    config = self.config
    x = self.dropout(x, deterministic=deterministic)
    x = nn.with_logical_constraint(
      x.astype(config.compute_dtype), _ACTIVATION_AXES
    )
    distance_bias = None
    if not config.relpos_bias_per_layer:
      distance_bias = self.relpos_bias(
        x.shape[1], mask_bias.shape[-1], position
      )
    rest = (
      mask_bias,
      distance_bias,
      encoded,
      encoded_mask_bias,
      deterministic,
      position,
    )
    for layer in [self.layers] if config.scan_layers else self.layers:
      x, _ = layer(x, *rest)
    x = self.decoder_norm(x) if self.is_decoder else self.encoder_norm(x)
    return self.dropout(x, deterministic=deterministic)


class T5(nn.Module):
  """A T5 encoder-decoder.

  Attributes:
    config: architecture and numerics.
    adapters: resolved LoRA adapters, or None for the bare backbone.
  """

  config: t5_config.T5Config
  adapters: lora_lib.Adapters | None = None

  def setup(self):
    config = self.config
    self.token_embedder = layers.Embed(
      config.vocab_size, config.emb_dim, dtype=config.compute_dtype
    )
    self.encoder = Stack(config, is_decoder=False, adapters=self.adapters)
    self.decoder = Stack(config, is_decoder=True, adapters=self.adapters)

  def encode(
    self, prompts: prompts_lib.MaybeEncoded, *, deterministic: bool = True
  ) -> prompts_lib.Encoded:
    """Encodes prompts, unless they are encoded already.

    Args:
      prompts: the prompts; encoded ones are returned unchanged.
      deterministic: whether dropout is off.

    Returns:
      States `[batch, memory_length, embed]` and their mask.

    Raises:
      ValueError: there are images, and the model is a T5.
    """
    if isinstance(prompts, prompts_lib.Encoded):
      return prompts
    embedded, mask = self.embed_prompts(prompts, deterministic=deterministic)
    states = self.encoder(
      embedded,
      attention.mask_to_bias(mask[:, None, None, :]),
      deterministic=deterministic,
    )
    return prompts_lib.Encoded(states, mask)

  def embed_prompts(
    self, prompts: prompts_lib.Prompts, *, deterministic: bool
  ) -> tuple[
    Float[jax.Array, 'batch memory_length embed'],
    Bool[typing.Array, 'batch memory_length'],
  ]:
    """Returns the encoder's input embeddings and their mask."""
    del deterministic
    if prompts.images is not None:
      raise ValueError('A T5 reads no images; a PaLI does.')
    return self.token_embedder(prompts.tokens), prompts.mask

  def decode(
    self,
    encoded: prompts_lib.Encoded,
    decoder_input_tokens: Int[typing.Array, 'rows response_length'],
    *,
    deterministic: bool = True,
  ) -> Float[jax.Array, 'rows response_length embed']:
    """Runs the decoder with teacher forcing.

    The decoder needs no mask of the response: padding comes last, and the
    causal mask hides it from real tokens.

    Args:
      encoded: output of `encode`.
      decoder_input_tokens: int32 `[batch * responses, response_length]`; the
        responses of a prompt are consecutive.
      deterministic: whether dropout is off.

    Returns:
      Final hidden states `[batch * responses, response_length, embed]`.
    """
    length = decoder_input_tokens.shape[1]
    causal = jnp.tri(length, dtype=bool)[None, None]
    return self.decoder(
      self.token_embedder(decoder_input_tokens),
      attention.mask_to_bias(causal),
      encoded=encoded.states,
      encoded_mask_bias=attention.mask_to_bias(encoded.mask[:, None, None, :]),
      deterministic=deterministic,
    )

  def decode_one(
    self,
    encoded: prompts_lib.Encoded,
    tokens: Int[typing.Array, 'rows 1'],
    position: kv_cache.CachePosition,
  ) -> Float[jax.Array, 'rows 1 embed']:
    """Runs the decoder on the next input token of each response.

    Equals one position of `decode` without dropout, if every earlier position
    was decoded before. Apply it with `mutable=['cache']`: the first call makes
    that collection, and each later call takes the one that the previous call
    returned. Later calls read only the shape of `encoded.states`, because the
    cache holds the prompt's keys and values.

    Args:
      encoded: output of `encode`.
      tokens: int32 `[batch * responses, 1]`, the input at `position`.
      position: position of the tokens, and length of the cache.

    Returns:
      Final hidden states `[batch * responses, 1, embed]`.
    """
    return self.decoder(
      self.token_embedder(tokens),
      attention.mask_to_bias(position.valid_keys()[None, None, None, :]),
      encoded=encoded.states,
      encoded_mask_bias=attention.mask_to_bias(encoded.mask[:, None, None, :]),
      position=position,
      deterministic=True,
    )

  def logits(
    self, hidden: Float[typing.Array, '*shape embed']
  ) -> Float[jax.Array, '*shape vocab']:
    """Maps hidden states `[..., embed]` to float32 logits `[..., vocab]`.

    Losses call it through `output_layer`, which holds few logits at a time.
    """
    if self.config.logits_via_embedding:
      return self.token_embedder.attend(hidden)
    return self.decoder.logits_dense(hidden)

  def hidden(
    self,
    prompts: prompts_lib.MaybeEncoded,
    decoder_input_tokens: Int[typing.Array, 'rows response_length'],
    *,
    deterministic: bool = True,
  ) -> Float[jax.Array, 'rows response_length embed']:
    """Returns final hidden states for the arguments of `__call__`."""
    encoded = self.encode(prompts, deterministic=deterministic)
    return self.decode(
      encoded, decoder_input_tokens, deterministic=deterministic
    )

  def __call__(
    self,
    prompts: prompts_lib.MaybeEncoded,
    decoder_input_tokens: Int[typing.Array, 'rows response_length'],
    *,
    deterministic: bool = True,
  ) -> Float[jax.Array, 'rows response_length vocab']:
    """Returns logits of the next token at each response position.

    Args:
      prompts: the prompts, or their encoding.
      decoder_input_tokens: int32 `[batch * responses, response_length]`.
      deterministic: whether dropout is off.

    Returns:
      float32 `[batch * responses, response_length, vocab]`.
    """
    return self.logits(
      self.hidden(prompts, decoder_input_tokens, deterministic=deterministic)
    )
