"""Converts a parameter tree between scanned and unrolled layers.

The unrolled layout has the names of T5X ('layers_0', 'layers_1', …) and, for a
ViT, of big_vision ('encoderblock_0', …); external formats use it. The scanned
layout (`nn.scan`) has one 'layers' or 'encoderblock' with a leading layer axis.
Other parameters are the same in both.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp

from perlhf_jax.core import tree_paths

_LAYER = re.compile(r'/(layers|encoderblock)_(\d+)/')
_STACK = re.compile(r'/(layers|encoderblock)/')


def is_stacked(path: str) -> bool:
  """Whether a path names a parameter of stacked layers."""
  return _STACK.search(path) is not None


def unrolled_path(path: str, index: int) -> str:
  """Returns the unrolled path of layer `index` of a stacked parameter."""
  return _STACK.sub(rf'/\g<1>_{index}/', path)


def stack_layers(
  tree: Mapping[str, Any], shardings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns an unrolled tree in the scanned layout.

  Args:
    tree: nested dict of arrays.
    shardings: shardings of the result, for arrays on a mesh.
  """
  places = tree_paths.flatten(shardings or {})
  stacked: dict[str, Any] = {}
  groups: dict[str, dict[int, Any]] = {}
  for path, leaf in tree_paths.flatten(tree).items():
    match = _LAYER.search(path)
    if match:
      name = _LAYER.sub(r'/\1/', path)
      groups.setdefault(name, {})[int(match[2])] = leaf
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
    if not is_stacked(path):
      unrolled[path] = leaf
      continue
    names = [unrolled_path(path, index) for index in range(leaf.shape[0])]
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
  """Returns the tree scanned if `scan_layers` is set, else unrolled."""
  if scan_layers == any(map(is_stacked, tree_paths.flatten(tree))):
    return dict(tree)
  change = stack_layers if scan_layers else unstack_layers
  return change(tree, shardings)


def _stack(leaves):
  return jnp.stack(leaves)


def _unstack(leaf):
  return [leaf[index] for index in range(leaf.shape[0])]
