"""Layers stacked for `nn.scan` or one by one: two layouts of the same tree.

Checkpoints and other people's formats use the unrolled names of T5X
('layers_0', 'layers_1', …); a scanned model holds one 'layers' with a leading
axis. Both functions leave everything that is no layer as it is.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax.numpy as jnp

from perlhf_jax.core import tree_paths

_LAYER = re.compile(r'/layers_(\d+)/')


def stack_layers(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an unrolled tree in the scanned layout."""
  stacked: dict[str, Any] = {}
  groups: dict[str, dict[int, Any]] = {}
  for path, leaf in tree_paths.flatten(tree).items():
    match = _LAYER.search(path)
    if match:
      name = _LAYER.sub('/layers/', path)
      groups.setdefault(name, {})[int(match[1])] = leaf
    else:
      stacked[path] = leaf
  for name, leaves in groups.items():
    stacked[name] = jnp.stack([leaves[i] for i in range(len(leaves))])
  return tree_paths.unflatten(stacked)


def unstack_layers(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a scanned tree in the unrolled layout."""
  unrolled: dict[str, Any] = {}
  for path, leaf in tree_paths.flatten(tree).items():
    if '/layers/' not in path:
      unrolled[path] = leaf
      continue
    for index in range(leaf.shape[0]):
      unrolled[path.replace('/layers/', f'/layers_{index}/')] = leaf[index]
  return tree_paths.unflatten(unrolled)


def to_layout(tree: Mapping[str, Any], scan_layers: bool) -> dict[str, Any]:
  """Returns the tree in the layout that `scan_layers` asks for."""
  is_stacked = any('/layers/' in path for path in tree_paths.flatten(tree))
  if scan_layers == is_stacked:
    return dict(tree)
  return stack_layers(tree) if scan_layers else unstack_layers(tree)
