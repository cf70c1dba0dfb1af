"""Puts a model's variables on the mesh: initialised, given, or shapes only."""

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
  """Makes a model's variables on the mesh, initialising those not given.

  Each variable is created sharded: no device or host ever holds all of a
  sharded variable.

  Args:
    init: returns all variables, boxed.
    given: variables that are on the mesh already.
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
    # The compiler drops the computation of the given variables.
    variables = tree_paths.flatten(flax.core.meta.unbox(init()))
    return {path: variables[path] for path in drawn}

  variables = jax.jit(init_drawn, out_shardings=drawn)() if drawn else {}
  return tree_paths.unflatten(variables | given), shardings


def copy(tree: Any) -> Any:
  """Copies parameters to train, since a training step donates its state."""
  return jax.tree.map(jnp.copy, tree)


def shapes(
  init: Callable[[], Mapping[str, Any]], mesh: partitioning.LogicalMesh
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the shapes of what `place` makes, to compile without weights.

  Args:
    init: returns all variables, boxed.
    mesh: the mesh; its devices may be of another machine.

  Returns:
    `jax.ShapeDtypeStruct`s with shardings, and the shardings.
  """
  boxed = jax.eval_shape(init)
  shardings = partitioning.shardings_of(boxed, mesh)
  unboxed = flax.core.meta.unbox(boxed)
  return partitioning.abstract_arrays(unboxed, shardings), shardings
