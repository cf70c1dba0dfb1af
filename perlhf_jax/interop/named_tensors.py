"""Reads a safetensors file with a known set of tensors."""

from collections.abc import Mapping
import os

from etils import epath
import numpy as np

from perlhf_jax.interop import hf_match
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import safetensors_files


def read(
  path: str | os.PathLike[str],
  name: str,
  shapes: Mapping[str, tuple[int, ...]],
  *,
  source: str,
  whole: str,
) -> dict[str, np.ndarray]:
  """Reads tensors in float32; see `reader`."""
  opened = reader(path, name, shapes, source=source, whole=whole)
  return {tensor: opened.read(tensor) for tensor in shapes}


def reader(
  path: str | os.PathLike[str],
  name: str,
  shapes: Mapping[str, tuple[int, ...]],
  *,
  source: str,
  whole: str,
) -> safetensors_files.Reader:
  """Opens a file and checks its tensors.

  Args:
    path: path of the directory, local or remote.
    name: name of the file.
    shapes: shapes of exactly the tensors that the file must hold, by name.
    source: origin of `shapes`, for messages.
    whole: model of which the tensors are a part, for messages.

  Raises:
    CheckpointError: the file is missing or damaged, or tensors are missing,
      left over or of another shape.
  """
  directory = epath.Path(path)
  if remote_files.is_remote(path):
    directory = remote_files.copy_of(directory, [name])
  what = f'{directory / name}'
  with remote_files.named(path, directory):
    opened = safetensors_files.Reader(directory, name)
    found = opened.shapes()
    hf_match.check_names(
      expected=set(shapes),
      found=set(found),
      what=f'{what} does not hold the tensors of its {source}',
      kind='tensors',
      whole=whole,
    )
    for tensor, shape in shapes.items():
      hf_match.check_shape(
        f'{what}: tensor {tensor}', found[tensor], shape, source
      )
  return opened
