"""Repeats a layer: unrolled, or stacked and run by `nn.scan`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from perlhf_jax.models import products
from perlhf_jax.models import t5_config


def _remat_policy(config: t5_config.T5Config, with_adapters: bool):
  if config.remat_policy == 'full':
    return None
  # With LoRA, the widest activations are recomputed, for 15 to 18% of the
  # step's FLOPs. Without weight gradients it is still shorter than full tuning.
  kept = [] if with_adapters else [products.MLP_HIDDEN]
  return jax.checkpoint_policies.save_only_these_names(products.ROUNDED, *kept)


def make_layers(
  layer: type[nn.Module],
  config: t5_config.T5Config,
  *,
  length: int,
  num_inputs: int,
  static_input: int,
  arguments: Mapping[str, Any],
  name: str | None = None,
) -> list[nn.Module]:
  """Makes the layers of a stack, each called as `x, _ = layer(x, *inputs)`.

  Args:
    layer: takes `x` and inputs that are the same for all layers, and returns
      `(x, None)`.
    config: says whether layers are scanned, and what the backward pass
      recomputes.
    length: number of layers.
    num_inputs: number of inputs without `x`.
    static_input: index in `inputs` of the static (non-array) input.
    arguments: the layer's fields.
    name: name of the scanned layer, or prefix in `{name}_{index}` of unrolled
      layers; None in `setup`, where attributes give names.

  Returns:
    `length` layers, or a list of one scanned layer.
  """
  if config.remat_policy != 'none':
    layer = nn.remat(
      layer,
      policy=_remat_policy(config, arguments['adapters'] is not None),
      prevent_cse=not config.scan_layers,
      # `self` and `x` come before the inputs in `__call__`.
      static_argnums=(static_input + 2,),
    )
  if not config.scan_layers:
    return [
      layer(**arguments, name=None if name is None else f'{name}_{index}')
      for index in range(length)
    ]
  scanned = nn.scan(
    layer,
    variable_axes={'params': 0, 'lora': 0, 'cache': 0},
    split_rngs={'params': True, 'lora': True, 'dropout': True},
    in_axes=(nn.broadcast,) * num_inputs,
    length=length,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  return [scanned(**arguments, name=name)]
