"""The configuration of a PaLI-style model: a ViT in front of a T5."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from perlhf_jax.core import errors
from perlhf_jax.core import schemas
from perlhf_jax.models import t5_config
from perlhf_jax.models import vit_config


@dataclasses.dataclass(frozen=True)
class PaliConfig(t5_config.T5Config):
  """A T5 whose encoder reads image tokens before text tokens.

  The fields of `T5Config` describe the T5; `dtype`, `scan_layers`,
  `remat_policy` and `attention_block` apply to the ViT too. PaLI (Chen et al.
  2022, arXiv:2209.06794), PaLI-3 (arXiv:2310.09199).

  Attributes:
    vit: the ViT.
    train_vit: whether the ViT is trained in full, also in a LoRA run. PaLI
      keeps it frozen in fine-tuning.
    train_projection: whether the projection of image tokens to text
      embeddings is trained in full, also in a LoRA run.
  """

  RUN_FIELDS: ClassVar = t5_config.T5Config.RUN_FIELDS | {
    'train_vit',
    'train_projection',
  }

  vit: vit_config.ViTConfig | None = None
  train_vit: bool = False
  train_projection: bool = True

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.vit, vit_config.ViTConfig):
      raise errors.ConfigError(
        f'PaliConfig.vit is {self.vit!r}; give a ViTConfig, in gin '
        '@vit_config.ViTConfig().'
      )

  @property
  def image_size(self) -> int:
    """Side length of an image in pixels."""
    return self.vit.image_size

  def with_image_size(self, image_size: int) -> 'PaliConfig':
    """Returns the configuration at another resolution."""
    vit = dataclasses.replace(self.vit, image_size=image_size)
    return dataclasses.replace(self, vit=vit)

  def architecture(self) -> dict[str, Any]:
    """As in `T5Config`, without the image size: positions can be resized."""
    fields = super().architecture()
    vit = {k: v for k, v in fields.pop('vit').items() if k != 'image_size'}
    return {**fields, **{f'vit.{name}': value for name, value in vit.items()}}


def in_front_of(
  config: t5_config.T5Config, vit: vit_config.ViTConfig, path: str
) -> PaliConfig:
  """Returns the configuration of a T5 with a ViT in front of it.

  Args:
    config: configuration of the T5.
    vit: configuration of the ViT.
    path: checkpoint of the T5, for the message.

  Raises:
    CheckpointError: the T5 has a ViT already.
  """
  if config.image_size is not None:
    raise errors.CheckpointError(
      f'{path} already has a ViT; leave out INITIAL_VIT_PATH, or start from a '
      'T5.'
    )
  fields = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
  }
  return PaliConfig(**fields, vit=vit)


def from_fields(fields: Any) -> t5_config.T5Config:
  """Makes a configuration from its `dataclasses.asdict`.

  Raises:
    ConfigError: `fields` is something else, or has a value out of bounds.
  """

  def make(config_class, raw, name):
    return schemas.make(
      config_class, raw, name, error=errors.ConfigError, only=True
    )

  if not isinstance(fields, Mapping) or fields.get('vit') is None:
    return make(t5_config.T5Config, fields, 'model')
  vit = make(vit_config.ViTConfig, fields['vit'], 'model.vit')
  return make(PaliConfig, {**fields, 'vit': vit}, 'model')
