"""Which backbone parameters are trained, besides adapters and heads.

Full tuning trains all parameters of a T5, and LoRA none. Both freeze a PaLI's
ViT and train its image projection, unless the configuration says otherwise.
"""

from collections.abc import Mapping
from typing import Any

from perlhf_jax.core import tree_paths
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config

_PROJECTION = 'params/image_projection/'


def is_tuned(path: str, config: t5_config.T5Config, *, lora: bool) -> bool:
  """Returns whether a backbone parameter is trained.

  Args:
    path: path such as 'encoder/layers_0/mlp/wo/kernel'.
    config: the model's configuration.
    lora: whether adapters are trained.
  """
  if isinstance(config, pali_config.PaliConfig):
    if path.startswith('vit/'):
      return config.train_vit
    if path.startswith('image_projection/'):
      return config.train_projection
  return not lora


def is_added(path: str) -> bool:
  """Returns whether a weight is new in tuning, not pre-trained.

  New weights are adapters, heads, and a PaLI's image projection. Some of these
  matrices and biases begin at zero.

  Args:
    path: path with its collection, such as
      'params/encoder/encoder_norm/scale'.
  """
  return not path.startswith('params/') or path.startswith(_PROJECTION)


def tuned_parts(config: t5_config.T5Config, *, lora: bool) -> dict[str, bool]:
  """Returns whether each part of the backbone is trained."""
  parts = ('vit/', 'image_projection/', 'encoder/')
  return {part: is_tuned(part, config, lora=lora) for part in parts}


def keeps_any(config: t5_config.T5Config, *, lora: bool) -> bool:
  """Returns whether any part of the backbone is frozen."""
  return not all(tuned_parts(config, lora=lora).values())


def split(
  params: Mapping[str, Any], config: t5_config.T5Config, *, lora: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits backbone parameters into trained and frozen ones.

  Args:
    params: arrays, shapes or shardings.
    config: the model's configuration.
    lora: whether adapters are trained.
  """
  tuned, kept = {}, {}
  for path, leaf in tree_paths.flatten(params).items():
    part = tuned if is_tuned(path, config, lora=lora) else kept
    part[path] = leaf
  return tree_paths.unflatten(tuned), tree_paths.unflatten(kept)
