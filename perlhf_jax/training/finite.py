"""Refuses weights that are NaN or infinite.

A model with one NaN gives NaN or empty answers, and a training run with one
seems to have a bad learning rate. So weights are checked where they are read:
by `fingerprint` when a model is loaded, and here when a run is resumed.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from perlhf_jax.core import errors
from perlhf_jax.core import typing
from perlhf_jax.training import placement

_MOST_SHOWN = 3


def not_finite(tree: typing.PyTree) -> dict[str, int]:
  """Counts NaN and infinite values, in one program on the arrays' devices.

  Args:
    tree: arrays; those that are not of floating point are skipped.

  Returns:
    The number of values that are not finite by array path; arrays without any
    are left out.
  """
  leaves = [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  if not leaves:
    return {}
  counts = placement.to_host(_count([leaf for _, leaf in leaves]))
  return {
    name: int(count)
    for (name, _), count in zip(leaves, counts, strict=True)
    if count
  }


@jax.jit
def _count(leaves: list[jax.Array]) -> jax.Array:
  return jnp.stack(
    [jnp.sum(~jnp.isfinite(leaf), dtype=jnp.uint32) for leaf in leaves]
  )


def check(counts: Mapping[str, int], where: str) -> None:
  """Refuses weights with values that are not finite.

  Args:
    counts: counts from `not_finite` or `fingerprint.read`.
    where: the checkpoint, for the message.

  Raises:
    CheckpointError: `counts` is not empty; the message names the parameters.
  """
  if not counts:
    return
  shown = ', '.join(
    f'{name} ({count:,})' for name, count in list(counts.items())[:_MOST_SHOWN]
  )
  more = len(counts) - _MOST_SHOWN
  raise errors.CheckpointError(
    f'{where} holds numbers that are NaN or infinite, in {shown}'
    f'{f" and {more} more" if more > 0 else ""}. The file is damaged, or its '
    'training had failed when it was saved: give another step or another copy.'
  )
