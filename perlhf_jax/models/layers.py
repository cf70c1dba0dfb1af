"""Dense, norm, embedding and feed-forward layers with T5X's parameter names."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from perlhf_jax.core import typing
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import products
from perlhf_jax.models import t5_config

Initializer = Callable[..., Any]

DENSE_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
_ACTIVATIONS = {
  'relu': jax.nn.relu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=True),
  'silu': jax.nn.silu,
  'linear': lambda x: x,
}


class Dense(nn.Module):
  """A matrix product with a 2-D kernel `[in, features]`; T5 has no biases.

  It is the only layer that LoRA adapts: where `adapters` names this module's
  path, the low-rank update is added before any reshape into heads. Product,
  bias and update are added in float32 and rounded once.

  Attributes:
    features: output width.
    kernel_axes: logical axes of the kernel.
    dtype: dtype of the factors of the product.
    output_dtype: dtype of the output; `dtype` if None.
    kernel_init: initializer of the kernel.
    bias_init: initializer of a bias; None for no bias.
    adapters: resolved LoRA adapters of the whole model, or None.
    remat_name: checkpoint name of the output, for remat policies.
  """

  features: int
  kernel_axes: tuple[str, str | None]
  dtype: Any = jnp.float32
  output_dtype: Any = None
  kernel_init: Initializer = DENSE_INIT
  bias_init: Initializer | None = None
  adapters: lora_lib.Adapters | None = None
  remat_name: str = products.ROUNDED

  @nn.compact
  def __call__(
    self, x: Float[typing.Array, '*shape inputs'], *, deterministic: bool = True
  ) -> Float[jax.Array, '*shape {self.features}']:
    """Maps `[..., in]` to `[..., features]`."""
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(self.kernel_init, self.kernel_axes),
      (x.shape[-1], self.features),
      jnp.float32,
    )
    y = products.product(x.astype(self.dtype), kernel.astype(self.dtype))
    adapters, update = self.adapters, None
    if adapters is not None and '/'.join(self.path) in adapters.module_paths:
      update, gains = lora_lib.LowRankUpdate(
        config=adapters.config,
        features=self.features,
        kernel_axes=self.kernel_axes,
        dtype=self.dtype,
        name='lora',
      )(x, kernel, deterministic=deterministic)
      if gains is not None:
        # The bias is not scaled.
        y, update = (y + update) * gains, None
    if self.bias_init is not None:
      bias = self.param(
        'bias',
        nn.with_logical_partitioning(self.bias_init, self.kernel_axes[1:]),
        (self.features,),
        jnp.float32,
      )
      y = y + bias
    if update is not None:
      y = y + update
    return products.rounded(y, self.output_dtype or self.dtype, self.remat_name)


class RMSNorm(nn.Module):
  """T5's layer norm: no mean, no bias; statistics in float32.

  Attributes:
    dtype: dtype of the output.
    epsilon: added to the mean square.
  """

  dtype: Any = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(
    self, x: Float[typing.Array, '*shape embed']
  ) -> Float[jax.Array, '*shape embed']:
    """Normalizes the last axis of `[..., embed]`."""
    x = jnp.asarray(x, jnp.float32)
    scale = self.param(
      'scale',
      nn.with_logical_partitioning(nn.initializers.ones, ('embed',)),
      (x.shape[-1],),
      jnp.float32,
    )
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    y = x * jax.lax.rsqrt(mean_square + self.epsilon)
    return (y * jnp.asarray(scale, jnp.float32)).astype(self.dtype)


class Embed(nn.Module):
  """Token embedding, and the output layer of models that tie the two.

  Attributes:
    num_embeddings: number of rows.
    features: width.
    dtype: dtype of the looked-up embeddings and of the factors of logits.
  """

  num_embeddings: int
  features: int
  dtype: Any = jnp.float32

  def setup(self):
    self.embedding = self.param(
      'embedding',
      nn.with_logical_partitioning(
        nn.initializers.normal(1.0), ('vocab', 'embed')
      ),
      (self.num_embeddings, self.features),
      jnp.float32,
    )

  def __call__(
    self, tokens: Int[typing.Array, 'batch length']
  ) -> Float[jax.Array, 'batch length embed']:
    """Maps ids `[batch, length]` to `[batch, length, embed]`."""
    embedding = jnp.asarray(self.embedding, self.dtype)
    return jnp.take(embedding, tokens, axis=0)

  def attend(
    self, x: Float[typing.Array, '*shape embed']
  ) -> Float[jax.Array, '*shape vocab']:
    """Maps `[..., embed]` to float32 logits, scaled by sqrt(embed)."""
    x = jnp.asarray(x, self.dtype) / jnp.sqrt(
      jnp.asarray(self.features, self.dtype)
    )
    return products.product(x, jnp.asarray(self.embedding, self.dtype).T)


class Mlp(nn.Module):
  """T5's feed-forward block, plain (`wi`) or gated (`wi_0`, `wi_1`).

  Attributes:
    config: the model's configuration.
    adapters: resolved LoRA adapters, or None.
  """

  config: t5_config.T5Config
  adapters: lora_lib.Adapters | None = None

  @nn.compact
  def __call__(
    self, x: Float[typing.Array, 'batch length embed'], *, deterministic: bool
  ) -> Float[jax.Array, 'batch length embed']:
    """Maps `[batch, length, embed]` to the same shape."""
    config = self.config
    names = config.mlp_activations
    branches = []
    for index, activation in enumerate(names):
      y = Dense(
        features=config.mlp_dim,
        kernel_axes=('embed', 'mlp'),
        dtype=config.compute_dtype,
        adapters=self.adapters,
        remat_name=products.MLP_HIDDEN,
        name='wi' if len(names) == 1 else f'wi_{index}',
      )(x, deterministic=deterministic)
      branches.append(_ACTIVATIONS[activation](y))
    hidden = branches[0]
    for branch in branches[1:]:
      hidden = hidden * branch
    hidden = nn.with_logical_constraint(hidden, ('batch', 'length', 'mlp'))
    hidden = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))(
      hidden, deterministic=deterministic
    )
    return Dense(
      features=config.emb_dim,
      kernel_axes=('mlp', 'embed'),
      dtype=config.compute_dtype,
      adapters=self.adapters,
      name='wo',
    )(hidden, deterministic=deterministic)
