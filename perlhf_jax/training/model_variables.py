"""Variables of a model on the mesh: drawn, given, or their shapes alone."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from perlhf_jax.core import tree_paths
from perlhf_jax.training import partitioning


def place(
  init: Callable[[], Mapping[str, Any]],
  given: Mapping[str, Any],
  mesh: partitioning.LogicalMesh,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Makes variables on the mesh, initialising those that are not given.

  Each is created as it is split; no device or host has one whole that is not
  to.

  Args:
    init: returns all variables, boxed.
    given: some of them, on the mesh.
    mesh: the mesh.

  Returns:
    The variables, and their shardings.
  """
  shardings = partitioning.shardings_of(jax.eval_shape(init), mesh)
  given = tree_paths.flatten(given)
  drawn = {
    path: sharding
    for path, sharding in tree_paths.flatten(shardings).items()
    if path not in given
  }

  def init_drawn():
    # What is given is not computed: the compiler drops it.
    variables = tree_paths.flatten(flax.core.meta.unbox(init()))
    return {path: variables[path] for path in drawn}

  variables = jax.jit(init_drawn, out_shardings=drawn)() if drawn else {}
  return tree_paths.unflatten(variables | given), shardings


def copy(tree: Any) -> Any:
  """Copies what is to be trained: a training step takes its state over."""
  return jax.tree.map(jnp.copy, tree)


def shapes(
  init: Callable[[], Mapping[str, Any]], mesh: partitioning.LogicalMesh
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what `place` would make as shapes, for compiling without weights.

  Args:
    init: as of `place`.
    mesh: the mesh, which may be of devices of another machine.

  Returns:
    `jax.ShapeDtypeStruct`s with shardings, and the shardings.
  """
  boxed = jax.eval_shape(init)
  shardings = partitioning.shardings_of(boxed, mesh)
  unboxed = flax.core.meta.unbox(boxed)
  return partitioning.abstract_arrays(unboxed, shardings), shardings
