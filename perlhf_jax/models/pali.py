"""PaLI: a T5 whose encoder reads image tokens of a ViT before the text.

The tokens of the ViT's last layer, before any pooling, are projected to the
T5's width and put before the embedded text. The encoder attends to both, with
one relative position bias over the joint sequence (Chen et al. 2022,
arXiv:2209.06794, section 3.1; PaLI-3, arXiv:2310.09199, section 3.1). Several
images of a prompt follow one another (PaLI-X, arXiv:2305.18565).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from perlhf_jax.core import typing
from perlhf_jax.models import layers
from perlhf_jax.models import pali_config
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.models import vit


class Pali(t5.T5):
  """An encoder-decoder that reads images and text.

  It adds `vit` and `image_projection` to the parameters of the T5. It treats
  prompts without images as the T5 does.

  Attributes:
    config: architecture and numerics.
    adapters: resolved LoRA adapters, or None for the bare backbone.
  """

  config: pali_config.PaliConfig

  def setup(self):
    super().setup()
    self.vit = vit.ViT(self.config, self.adapters)
    self.image_projection = layers.Dense(
      features=self.config.emb_dim,
      # `embed` already shards the input axis, which has the ViT's width.
      kernel_axes=('embed', None),
      dtype=self.config.compute_dtype,
      bias_init=nn.initializers.zeros,
      adapters=self.adapters,
    )

  def embed_prompts(
    self, prompts: prompts_lib.Prompts, *, deterministic: bool
  ) -> tuple[
    Float[jax.Array, 'batch memory_length embed'],
    Bool[typing.Array, 'batch memory_length'],
  ]:
    """Returns image tokens and embedded text, and which of them are real."""
    text = self.token_embedder(prompts.tokens)
    if prompts.images is None:
      return text, prompts.mask
    batch, images, *pixels = prompts.images.shape
    tokens = self.vit(
      prompts.images.reshape(-1, *pixels), deterministic=deterministic
    )
    tokens = self.image_projection(tokens, deterministic=deterministic)
    tokens = tokens.reshape(batch, -1, tokens.shape[-1])
    mask = jnp.repeat(prompts.image_mask, tokens.shape[1] // images, axis=1)
    embedded = jnp.concatenate([tokens, text], axis=1)
    return embedded, jnp.concatenate([mask, prompts.mask], axis=1)
