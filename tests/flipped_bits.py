"""Flips bits that no checksum but ours finds."""

import pathlib
import random

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from perlhf_jax.training import array_digests


def data_files(step) -> list[pathlib.Path]:
  """The files that hold the arrays of a step, the largest first."""
  files = [p for p in pathlib.Path(step, 'state').rglob('d/*') if p.is_file()]
  return sorted(files, key=lambda file: file.stat().st_size, reverse=True)


def flip(file, rng) -> None:
  """Flips one bit of a file."""
  data = bytearray(file.read_bytes())
  place = rng.randrange(8 * len(data))
  data[place // 8] ^= 1 << place % 8
  file.write_bytes(data)


def _values(step, within):
  """Reads arrays unchecked, by name."""
  handler, state = ocp.PyTreeCheckpointHandler(), epath.Path(step) / 'state'
  tree = handler.metadata(state).tree
  wanted = {name for name in array_digests.by_name(tree) if within in name}
  item = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf
      if jax.tree_util.keystr(path, simple=True, separator='/') in wanted
      else ocp.PLACEHOLDER
    ),
    tree,
  )
  kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
  read = handler.restore(
    state, args=ocp.args.PyTreeRestore(item=item, restore_args=kinds)
  )
  handler.close()
  leaves = array_digests.by_name(read)
  return {name: np.asarray(leaves[name]) for name in wanted}


def flip_a_value(step, within) -> str | None:
  """Flips a bit that changes a value, although the arrays can be read.

  Other bits of a file are of no consequence, of arrays that few read, or make
  arrays unreadable. A bit of the last kind is flipped if tries find no other.

  Args:
    step: folder of the step.
    within: part of the names of the arrays to change.

  Returns:
    The name of an array that changed; None if arrays became unreadable.
  """
  files, rng = data_files(step), random.Random(0)
  sizes = [file.stat().st_size for file in files]
  values = _values(step, within)
  unreadable = None
  for _ in range(60):
    (file,) = rng.choices(files, sizes)
    before = file.read_bytes()
    flip(file, rng)
    try:
      found = _values(step, within)
    except Exception:
      found, unreadable = values, (file, file.read_bytes())
    for name, value in values.items():
      if found[name].tobytes() != value.tobytes():
        return name
    file.write_bytes(before)
  assert unreadable, 'no bit changes a value'
  file, content = unreadable
  file.write_bytes(content)
  return None
