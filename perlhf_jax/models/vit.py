"""A vision transformer with the names and numerics of big_vision and SigLIP.

It has patches, learned position embeddings and pre-norm blocks, and returns all
tokens of the last layer: no class token, no pooling. Attention kernels are 2-D,
as in the T5; big_vision's have a heads axis.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from perlhf_jax.core import typing
from perlhf_jax.models import attend
from perlhf_jax.models import layers
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import pali_config
from perlhf_jax.models import repeat

_KERNEL_INIT = nn.initializers.xavier_uniform()
_BIAS_INIT = nn.initializers.normal(1e-6)


def pixels_to_floats(
  images: UInt8[typing.Array, '*shape'],
) -> Float[jax.Array, '*shape']:
  """Maps 0..255 to [-1, 1], in float32."""
  return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


class PatchEmbedding(nn.Module):
  """A linear map of each patch: a convolution whose stride is its kernel size.

  Attributes:
    config: the model's configuration.
  """

  config: pali_config.PaliConfig

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'batch height width channels']
  ) -> Float[jax.Array, 'batch tokens embed']:
    """Maps `[batch, height, width, 3]` to `[batch, tokens, embed]`."""
    vit, dtype = self.config.vit, self.config.compute_dtype
    size, side = vit.patch_size, vit.image_size // vit.patch_size
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(
        nn.initializers.lecun_normal(), (None, None, None, 'embed')
      ),
      (size, size, x.shape[-1], vit.width),
      jnp.float32,
    )
    bias = self.param(
      'bias',
      nn.with_logical_partitioning(nn.initializers.zeros, ('embed',)),
      (vit.width,),
      jnp.float32,
    )
    x = x.reshape(-1, side, size, side, size, x.shape[-1])
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), side * side, -1)
    kernel = kernel.reshape(-1, vit.width).astype(dtype)
    return jnp.dot(x.astype(dtype), kernel) + bias.astype(dtype)


class SelfAttention(nn.Module):
  """Multi-head attention with biases, scaled by 1/sqrt(head_dim).

  Attributes:
    config: the model's configuration.
    adapters: resolved LoRA adapters, or None.
  """

  config: pali_config.PaliConfig
  adapters: lora_lib.Adapters | None = None

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'batch tokens embed'], *, deterministic: bool
  ) -> Float[jax.Array, 'batch tokens embed']:
    """Maps `[batch, tokens, embed]` to the same shape."""
    config, vit = self.config, self.config.vit
    head_dim = vit.width // vit.num_heads

    def dense(name, axes):
      return _dense(self, name, vit.width, axes, nn.initializers.zeros)

    def project(name):
      y = dense(name, ('embed', 'joined_kv'))(x, deterministic=deterministic)
      y = y.reshape(*y.shape[:2], vit.num_heads, head_dim)
      return nn.with_logical_constraint(y, ('batch', 'length', 'heads', 'kv'))

    y = attend.attend(
      project('query') * head_dim**-0.5,
      project('key'),
      project('value'),
      lambda weights: weights,
      block=config.attention_block,
    )
    y = y.reshape(*y.shape[:2], vit.width)
    out = dense('out', ('joined_kv', 'embed'))
    return out(y, deterministic=deterministic)


class Mlp(nn.Module):
  """The feed-forward block.

  Attributes:
    config: the model's configuration.
    adapters: resolved LoRA adapters, or None.
  """

  config: pali_config.PaliConfig
  adapters: lora_lib.Adapters | None = None

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'batch tokens embed'], *, deterministic: bool
  ) -> Float[jax.Array, 'batch tokens embed']:
    """Maps `[batch, tokens, embed]` to the same shape."""
    vit = self.config.vit
    widen = _dense(self, 'Dense_0', vit.mlp_dim, ('embed', 'mlp'), _BIAS_INIT)
    y = jax.nn.gelu(widen(x, deterministic=deterministic))
    y = nn.with_logical_constraint(y, ('batch', 'length', 'mlp'))
    out = _dense(self, 'Dense_1', vit.width, ('mlp', 'embed'), _BIAS_INIT)
    return out(y, deterministic=deterministic)


class EncoderBlock(nn.Module):
  """One encoder layer.

  Attributes:
    config: the model's configuration.
    adapters: resolved LoRA adapters, or None.
  """

  config: pali_config.PaliConfig
  adapters: lora_lib.Adapters | None = None

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'batch tokens embed'], deterministic: bool
  ) -> tuple[Float[jax.Array, 'batch tokens embed'], None]:
    """Maps `[batch, tokens, embed]` to the same; in `nn.scan`'s form."""
    config, adapters = self.config, self.adapters
    y = _layer_norm(config, 'LayerNorm_0')(x)
    y = SelfAttention(config, adapters, name='MultiHeadDotProductAttention_0')(
      y, deterministic=deterministic
    )
    x = nn.with_logical_constraint(x + y, ('batch', 'length', 'embed'))
    y = _layer_norm(config, 'LayerNorm_1')(x)
    y = Mlp(config, adapters, name='MlpBlock_0')(y, deterministic=deterministic)
    return nn.with_logical_constraint(x + y, ('batch', 'length', 'embed')), None


class Transformer(nn.Module):
  """All layers, and the final norm.

  Attributes:
    config: the model's configuration.
    adapters: resolved LoRA adapters, or None.
  """

  config: pali_config.PaliConfig
  adapters: lora_lib.Adapters | None = None

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, 'batch tokens embed'], *, deterministic: bool
  ) -> Float[jax.Array, 'batch tokens embed']:
    """Maps `[batch, tokens, embed]` to the same shape."""
    config = self.config
    blocks = repeat.make_layers(
      EncoderBlock,
      config,
      length=config.vit.depth,
      num_inputs=1,
      static_input=0,
      name='encoderblock',
      arguments=dict(config=config, adapters=self.adapters),
    )
    for block in blocks:
      x, _ = block(x, deterministic)
    return _layer_norm(config, 'encoder_norm')(x)


class ViT(nn.Module):
  """Maps images to tokens.

  Attributes:
    config: the model's configuration.
    adapters: resolved LoRA adapters, or None.
  """

  config: pali_config.PaliConfig
  adapters: lora_lib.Adapters | None = None

  @nn.compact
  def __call__(
    self,
    images: UInt8[typing.Array, 'batch height width channels'],
    *,
    deterministic: bool = True,
  ) -> Float[jax.Array, 'batch tokens embed']:
    """Maps uint8 `[batch, height, width, 3]` to `[batch, tokens, embed]`."""
    config = self.config
    side = config.image_size
    if images.shape[1:3] != (side, side):
      raise ValueError(f'Images {images.shape} for a ViT of {side} pixels.')
    x = PatchEmbedding(config, name='embedding')(pixels_to_floats(images))
    positions = self.param(
      'pos_embedding',
      nn.with_logical_partitioning(
        nn.initializers.normal(1 / np.sqrt(config.vit.width)),
        (None, None, 'embed'),
      ),
      (1, config.vit.num_tokens, config.vit.width),
      jnp.float32,
    )
    x = x + positions.astype(x.dtype)
    x = nn.with_logical_constraint(x, ('batch', 'length', 'embed'))
    return Transformer(config, self.adapters, name='Transformer')(
      x, deterministic=deterministic
    )


def _dense(module, name, features, axes, bias_init) -> layers.Dense:
  """Makes a dense layer for a module that has `config` and `adapters`."""
  return layers.Dense(
    features=features,
    kernel_axes=axes,
    dtype=module.config.compute_dtype,
    kernel_init=_KERNEL_INIT,
    bias_init=bias_init,
    adapters=module.adapters,
    name=name,
  )


def _layer_norm(config: pali_config.PaliConfig, name: str) -> nn.LayerNorm:
  """Makes a layer norm; its statistics are always float32."""
  return nn.LayerNorm(
    epsilon=1e-6,
    dtype=config.compute_dtype,
    use_fast_variance=False,
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('embed',)),
    name=name,
  )
