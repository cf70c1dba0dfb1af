"""Reads every array of a step, some at a time, and finds those that changed."""

from collections.abc import Iterator
import math
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from perlhf_jax.training import array_digests
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests
from perlhf_jax.training import stored_arrays

# Arrays are read together up to this size, since each reading takes a while.
_PART_BYTES = 256 << 20


def find_damage(step: epath.Path, digests: step_digests.Digests) -> str | None:
  """Reads all arrays of a step, even if PERLHF_VERIFY is off.

  Memory holds one array at a time, or several small ones.

  Args:
    step: folder of the step.
    digests: its digests.

  Returns:
    Names of damaged arrays; None without damage.

  Raises:
    CheckpointError: the arrays cannot be read, for another reason than damage.
  """
  state = step / step_digests.STATE
  stored_arrays.check_index(state)
  handler = ocp.PyTreeCheckpointHandler()
  try:
    stored: dict[str, Any] = {}

    def read_names():
      stored['tree'] = handler.metadata(state).tree
      return {}

    step_damage.read_arrays(step, read_names)
    tree = stored['tree']
    lost = digests.arrays.keys() - array_digests.by_name(tree).keys()
    if lost:
      return step_digests.listed(
        [f'the array {name} is missing' for name in sorted(lost)]
      )
    for part in _parts(tree):
      step_damage.read_arrays(
        step, lambda part=part: _read(handler, state, part), even_if_off=True
      )
  except step_damage.DamagedError as error:
    return error.damage
  finally:
    handler.close()
  return None


def _parts(tree: Any) -> Iterator[Any]:
  """Yields trees with some of the leaves; placeholders stand for the others."""
  leaves, structure = jax.tree.flatten(tree)
  part, size = {}, 0
  for index, leaf in enumerate(leaves):
    part[index] = leaf
    size += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    if size >= _PART_BYTES or index == len(leaves) - 1:
      yield structure.unflatten(
        [part.get(i, ocp.PLACEHOLDER) for i in range(len(leaves))]
      )
      part, size = {}, 0


def _read(handler: ocp.PyTreeCheckpointHandler, state: epath.Path, part: Any):
  wanted = jax.tree.map(
    lambda leaf: None if leaf is ocp.PLACEHOLDER else leaf, part
  )
  stored_arrays.check_room(array_digests.by_name(wanted), {}, state.parent)
  restored = handler.restore(
    state,
    args=ocp.args.PyTreeRestore(
      item=part,
      restore_args=jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), part
      ),
    ),
  )
  return jax.tree.map(
    lambda leaf: None if leaf is ocp.PLACEHOLDER else leaf, restored
  )
