"""The configuration of a vision transformer."""

import dataclasses
from typing import Annotated

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.models import t5_config


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """Architecture of a ViT without a class token and without pooling.

  Attributes:
    image_size: side length in pixels of the square input images. It determines
      only the number of position embeddings, which are resized when weights of
      another image size are loaded.
    patch_size: side length of a patch in pixels.
    width: width of the residual stream.
    depth: number of layers.
    mlp_dim: hidden width of the feed-forward blocks.
    num_heads: attention heads.
  """

  image_size: Annotated[int, checks.Range(least=1, most=16_384)]
  patch_size: t5_config.Width
  width: t5_config.Width
  depth: t5_config.Layers
  mlp_dim: t5_config.Width
  num_heads: t5_config.Width

  def __post_init__(self):
    checks.check_fields(self)
    if self.image_size % self.patch_size:
      smaller = self.image_size // self.patch_size * self.patch_size
      larger = smaller + self.patch_size
      raise errors.ConfigError(
        f'ViTConfig.image_size is {self.image_size}, which '
        f'ViTConfig.patch_size, {self.patch_size}, does not divide; choose '
        f'{f"{smaller} or " if smaller else ""}{larger}.'
      )
    if self.width % self.num_heads:
      raise errors.ConfigError(
        f'ViTConfig.width is {self.width}, which ViTConfig.num_heads, '
        f'{self.num_heads}, does not divide.'
      )

  @property
  def num_tokens(self) -> int:
    """Number of tokens per image: its patches."""
    return (self.image_size // self.patch_size) ** 2
