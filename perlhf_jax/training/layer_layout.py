"""Layers stacked for `nn.scan` or one by one: two layouts of the same tree.

Other people's formats use the unrolled names of T5X ('layers_0', 'layers_1',
…); a scanned model holds one 'layers' with a leading axis. What is no layer
stays as it is.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp

from perlhf_jax.core import tree_paths

_LAYER = re.compile(r'/layers_(\d+)/')


def stack_layers(
  tree: Mapping[str, Any], shardings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns an unrolled tree in the scanned layout.

  Args:
    tree: of arrays.
    shardings: of the result; for arrays that lie on a mesh.
  """
  places = tree_paths.flatten(shardings or {})
  stacked: dict[str, Any] = {}
  groups: dict[str, dict[int, Any]] = {}
  for path, leaf in tree_paths.flatten(tree).items():
    match = _LAYER.search(path)
    if match:
      name = _LAYER.sub('/layers/', path)
      groups.setdefault(name, {})[int(match[1])] = leaf
    else:
      stacked[path] = leaf
  for name, by_index in groups.items():
    leaves = [by_index[i] for i in range(len(by_index))]
    stack = jax.jit(_stack, out_shardings=places.get(name))
    stacked[name] = stack(leaves)
  return tree_paths.unflatten(stacked)


def unstack_layers(
  tree: Mapping[str, Any], shardings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns a scanned tree in the unrolled layout; see `stack_layers`."""
  places = tree_paths.flatten(shardings or {})
  unrolled: dict[str, Any] = {}
  for path, leaf in tree_paths.flatten(tree).items():
    if '/layers/' not in path:
      unrolled[path] = leaf
      continue
    names = [
      path.replace('/layers/', f'/layers_{index}/')
      for index in range(leaf.shape[0])
    ]
    split = jax.jit(
      _unstack, out_shardings=[places.get(name) for name in names]
    )
    unrolled.update(zip(names, split(leaf), strict=True))
  return tree_paths.unflatten(unrolled)


def to_layout(
  tree: Mapping[str, Any],
  scan_layers: bool,
  shardings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the tree in the layout that `scan_layers` asks for."""
  is_stacked = any('/layers/' in path for path in tree_paths.flatten(tree))
  if scan_layers == is_stacked:
    return dict(tree)
  change = stack_layers if scan_layers else unstack_layers
  return change(tree, shardings)


def _stack(leaves):
  return jnp.stack(leaves)


def _unstack(leaf):
  return [leaf[index] for index in range(leaf.shape[0])]
