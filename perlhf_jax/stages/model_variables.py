"""Variables of a model on the mesh: drawn, given, or their shapes alone."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from perlhf_jax.training import partitioning


def place(
  init: Callable[[], Mapping[str, Any]],
  given: Mapping[str, Any],
  mesh: partitioning.LogicalMesh,
  *,
  copy: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Makes variables on the mesh, initialising those that are not given.

  Each is created as it is split; no device or host has one whole that is not
  to.

  Args:
    init: returns all variables, boxed, by name.
    given: some of them, on the mesh.
    mesh: the mesh.
    copy: whether to copy what is given, as is needed of what trains: it will
      be donated.

  Returns:
    The variables, and their shardings.
  """
  shardings = partitioning.shardings_of(jax.eval_shape(init), mesh)
  drawn = {name: s for name, s in shardings.items() if name not in given}

  def init_drawn():
    # What is given is not computed: the compiler drops it.
    variables = flax.core.meta.unbox(init())
    return {name: variables[name] for name in drawn}

  variables = jax.jit(init_drawn, out_shardings=drawn)() if drawn else {}
  for name, tree in given.items():
    variables[name] = jax.tree.map(jnp.copy, tree) if copy else tree
  return variables, shardings


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
