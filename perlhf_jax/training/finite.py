"""Weights that are NaN or infinite are no weights.

A model with one NaN gives NaN or empty answers, and training with one blames
the learning rate. So they are looked for where weights come from: by
`fingerprint` when a model is loaded, and here when a run goes on.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from perlhf_jax.core import errors
from perlhf_jax.core import typing
from perlhf_jax.training import placement

_MOST_SHOWN = 3


def not_finite(tree: typing.PyTree) -> dict[str, int]:
  """Counts what is NaN or infinite, by one program, where the arrays lie.

  Args:
    tree: of arrays; whole numbers are always finite.

  Returns:
    How many numbers of each array are not finite, by its path; arrays that are
    finite are left out.
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
  """Refuses weights of which some are not finite.

  Args:
    counts: of `not_finite`, or of `fingerprint.read`.
    where: the checkpoint, for the message.

  Raises:
    CheckpointError: there are some; names the parameters.
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
