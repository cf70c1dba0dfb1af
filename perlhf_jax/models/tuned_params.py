"""Which parameters of a backbone are trained, beside adapters and heads.

Of a T5, all in full tuning and none beside adapters. A PaLI's ViT is frozen
in both and its projection trained in both, unless the configuration says
otherwise.
"""

from collections.abc import Mapping
from typing import Any

from perlhf_jax.core import tree_paths
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config

_PROJECTION = 'params/image_projection/'


def is_tuned(path: str, config: t5_config.T5Config, *, lora: bool) -> bool:
  """Says whether a parameter is trained in full.

  Args:
    path: such as 'encoder/layers_0/mlp/wo/kernel'.
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
  """Whether tuning adds a weight to what was pre-trained.

  Such weights are adapters, heads, and a PaLI's projection between its two
  parts. Matrices that begin at zero, and biases that do, are among them.

  Args:
    path: with its collection, such as 'params/encoder/encoder_norm/scale'.
  """
  return not path.startswith('params/') or path.startswith(_PROJECTION)


def keeps_any(config: t5_config.T5Config, *, lora: bool) -> bool:
  """Says whether a part of the backbone is frozen."""
  parts = ('vit/', 'image_projection/', 'encoder/')
  return not all(is_tuned(part, config, lora=lora) for part in parts)


def split(
  params: Mapping[str, Any], config: t5_config.T5Config, *, lora: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits a tree of parameters into what is trained in full and the rest.

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
