"""The dtype in which a frozen backbone is held.

Trained parameters are held in float32. Frozen ones can be held in the dtype
that the forward pass reads: it casts kernels and embeddings to the compute
dtype before every product. Holding them in that dtype changes no output, and in
bfloat16 halves their memory. Norms and position biases are read in float32.
"""

from typing import Any

import jax
import jax.numpy as jnp

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.models import t5_config

_CAST_BEFORE_USE = ('/kernel', '/embedding')


def held_dtype(path: str, config: t5_config.T5Config) -> Any:
  """Returns the dtype in which a frozen parameter is held."""
  if path.endswith(_CAST_BEFORE_USE):
    return config.compute_dtype
  return jnp.float32


def cast(
  params: typing.Params, config: t5_config.T5Config
) -> dict[str, typing.PyTree]:
  """Casts every leaf of `params` to its `held_dtype`.

  Args:
    params: arrays, which keep their sharding, or `jax.ShapeDtypeStruct`s.
    config: configuration of the backbone.
  """

  def hold(path, leaf):
    dtype = held_dtype(path, config)
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(dtype=dtype)
    return leaf.astype(dtype)

  flat = tree_paths.flatten(params)
  return tree_paths.unflatten({p: hold(p, leaf) for p, leaf in flat.items()})
