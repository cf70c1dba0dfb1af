"""A layer, many times: unrolled, or stacked and run by `nn.scan`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from perlhf_jax.models import products
from perlhf_jax.models import t5_config


def _remat_policy(config: t5_config.T5Config, with_adapters: bool):
  if config.remat_policy == 'full':
    return None
  # The widest activations, at 15 to 18% of a LoRA step's FLOPs. A LoRA step
  # takes no gradients of weights, so it is shorter than full tuning's still.
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
  """Makes the layers of a stack, for `x, _ = layer(x, *inputs)` in turn.

  Args:
    layer: takes `x` and inputs that are the same for all layers, and returns
      `(x, None)`.
    config: says whether layers are scanned, and what the backward pass
      recomputes.
    length: number of layers.
    num_inputs: of the inputs beside `x`.
    static_input: the place among them of the one that is no array.
    arguments: the layer's fields.
    name: of the scanned layer; `{name}_{index}` of unrolled ones. None in
      `setup`, where attributes give names.

  Returns:
    `length` layers, or one that stands for all of them.
  """
  if config.remat_policy != 'none':
    layer = nn.remat(
      layer,
      policy=_remat_policy(config, arguments['adapters'] is not None),
      prevent_cse=not config.scan_layers,
      # Of `__call__`'s arguments, self and x are the first two.
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
