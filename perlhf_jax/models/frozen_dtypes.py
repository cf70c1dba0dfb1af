"""In which dtype a frozen backbone is held.

What trains is held in float32. What is frozen can be held as the forward pass
reads it: kernels and embeddings are cast to the compute dtype before every
product, so that holding them in it changes no output and halves their memory.
Norms and position biases are read in float32.
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
  """Returns `params` with every leaf in the dtype in which it is held.

  Args:
    params: arrays, which keep their place on a mesh, or
      `jax.ShapeDtypeStruct`s.
    config: of the backbone.
  """

  def hold(path, leaf):
    dtype = held_dtype(path, config)
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(dtype=dtype)
    return leaf.astype(dtype)

  flat = tree_paths.flatten(params)
  return tree_paths.unflatten({p: hold(p, leaf) for p, leaf in flat.items()})
