"""Trees addressed by 'a/b/c' paths, and patterns that must match.

A pattern is a regular expression that matches a whole path. A pattern that
matches nothing is always an error: a misspelt one would otherwise silently
freeze or adapt nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
import difflib
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import patterns as patterns_lib
from perlhf_jax.core import typing


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Flattens a nested dict to `{'a/b/c': leaf}`, sorted by path."""
  flat = traverse_util.flatten_dict(dict(tree), sep='/')
  return {path: flat[path] for path in sorted(flat)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
  """Merges two trees; where both have a leaf, takes the leaf of `top`."""
  return unflatten(
    traverse_util.flatten_dict(dict(base), sep='/', keep_empty_nodes=True)
    | traverse_util.flatten_dict(dict(top), sep='/')
  )


def count_parameters(tree: typing.PyTree) -> int:
  """Returns the number of scalars in all leaves (arrays or shape structs)."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def count_bytes(tree: typing.PyTree) -> int:
  """Returns the bytes of all leaves (arrays or shape structs)."""
  return sum(
    int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def match_paths(
  patterns: Sequence[str], paths: Iterable[str], what: str
) -> tuple[str, ...]:
  """Returns the paths that at least one pattern matches, sorted.

  Args:
    patterns: regular expressions, each matched against whole paths.
    paths: the paths to choose from.
    what: what the patterns configure, for the error message.

  Raises:
    ConfigError: a pattern is not a regular expression, or matches nothing.
  """
  paths = sorted(paths)
  matched = set()
  for pattern in patterns:
    try:
      hits = [path for path in paths if patterns_lib.fullmatch(pattern, path)]
    except errors.ConfigError as error:
      raise errors.ConfigError(f'{what}: {error}') from error
    if not hits:
      near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3)
      shown = near or paths[:3]
      raise errors.ConfigError(
        f'{what}: the pattern {pattern!r} matches none of {len(paths)} paths. '
        f'It must match a whole path, for example {", ".join(shown)}.'
      )
    matched.update(hits)
  return tuple(sorted(matched))
