"""The encoder-decoder of a configuration: T5 or PaLI.

Other packages accept either; both have T5's interface: `encode`, `decode`,
`decode_one` and `logits`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from perlhf_jax.core import tree_paths
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import pali
from perlhf_jax.models import pali_config
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config

# Axes of a patch embedding's kernel; LoRA adapts matrix products only.
_CONVOLUTION_RANK = 4


def make_model(
  config: t5_config.T5Config, adapters: lora_lib.Adapters | None = None
) -> t5.T5:
  """Makes the module for a configuration.

  Args:
    config: architecture and numerics.
    adapters: resolved LoRA adapters; None for the bare backbone.
  """
  is_pali = isinstance(config, pali_config.PaliConfig)
  return (pali.Pali if is_pali else t5.T5)(config, adapters)


def init_variables(model: t5.T5, rng: jax.Array) -> dict[str, Any]:
  """Initializes a model's `params` (and `lora`, if adapted), boxed.

  The random numbers of `params` do not depend on the adapters.
  """
  params_rng, lora_rng = jax.random.split(rng)
  tokens = jnp.zeros((1, 1), jnp.int32)
  prompt = prompts.of_tokens(tokens)
  if (side := model.config.image_size) is not None:
    prompt = prompt.replace(
      images=jnp.zeros((1, 1, side, side, 3), jnp.uint8),
      image_mask=jnp.ones((1, 1), bool),
    )
  return model.init({'params': params_rng, 'lora': lora_rng}, prompt, tokens)


def dense_module_paths(config: t5_config.T5Config) -> tuple[str, ...]:
  """Returns the path of every dense layer, without allocating arrays."""
  model = make_model(config)
  variables = jax.eval_shape(
    lambda: nn.meta.unbox(init_variables(model, jax.random.key(0)))
  )
  return tuple(
    path.removesuffix('/kernel')
    for path, leaf in tree_paths.flatten(variables['params']).items()
    if path.endswith('/kernel') and leaf.ndim < _CONVOLUTION_RANK
  )
