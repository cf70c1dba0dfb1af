"""Writes weights in T5X's format: msgpack and zarr, version 3."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import itertools
import os
import pathlib
import shutil
from typing import Any

from etils import epy
from flax import serialization
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import t5x_layouts
from perlhf_jax.interop import t5x_names
from perlhf_jax.interop import write_progress

with epy.lazy_imports():
  import tensorstore

VERSION = 3

# As in T5X: small enough to read any sharding efficiently.
_CHUNK_BYTES = 64 * 1024**2


def write(
  table: Sequence[t5x_names.Source],
  make: Callable[[str], np.ndarray],
  target: pathlib.Path,
  step: int,
  dtype: np.dtype,
) -> None:
  """Writes a step, which gets its name when it is complete.

  Args:
    table: target of each parameter; the layers of a tensor are adjacent.
    make: returns the array of a parameter's path; called once per parameter,
      when it is written.
    target: the folder to create.
    step: number of training steps, for T5X.
    dtype: dtype to which weights are rounded.

  Raises:
    CheckpointError: the step cannot be written; nothing of it is left.
  """
  partial = target.with_name(f'{target.name}.tmp-{os.getpid()}')
  with _removed_on_failure(partial, target):
    partial.mkdir(parents=True)
    specs = {}
    sizes = [int(np.prod(source.shape)) * dtype.itemsize for source in table]
    with write_progress.Progress(str(target), len(table), sum(sizes)) as shown:
      for tensor, group in itertools.groupby(table, lambda s: s.tensor):
        specs[tensor] = _write_tensor(list(group), make, partial, dtype, shown)
    content = {
      'version': VERSION,
      'optimizer': {
        'state': {'step': np.asarray(step, np.int32)},
        'target': tree_paths.unflatten(specs),
      },
    }
    with (partial / t5x_layouts.INDEX).open('wb') as file:
      file.write(serialization.msgpack_serialize(content))
      file.flush()
      os.fsync(file.fileno())
    partial.rename(target)


@contextlib.contextmanager
def _removed_on_failure(
  partial: pathlib.Path, target: pathlib.Path
) -> Iterator[None]:
  was_there = target.parent.exists()

  def remove():
    shutil.rmtree(partial, ignore_errors=True)
    if not was_there:
      # Another program may have written there meanwhile.
      with contextlib.suppress(OSError):
        target.parent.rmdir()

  try:
    yield
  # TensorStore raises a ValueError when the disk is full.
  except (OSError, ValueError) as error:
    remove()
    raise errors.CheckpointError(
      f'{target} cannot be written ({error}). Choose a folder that you may '
      'write to, on a disk with room for the weights; nothing was left there.'
    ) from error
  except BaseException:
    remove()
    raise


def _write_tensor(
  sources: Sequence[t5x_names.Source],
  make: Callable[[str], np.ndarray],
  folder: pathlib.Path,
  dtype: np.dtype,
  shown: write_progress.Progress,
) -> dict[str, Any]:
  """Writes one tensor, and returns its specification with a relative path."""
  tensor, shape = sources[0].tensor, sources[0].tensor_shape
  key = '.'.join(('target', *tensor.split('/')))
  spec = {
    'driver': 'zarr',
    'dtype': dtype.name,
    'kvstore': {'driver': 'file', 'path': f'{key}/'},
    'metadata': {
      'chunks': _chunks(sources[0], dtype.itemsize),
      'compressor': {'id': 'gzip', 'level': 1},
      'shape': list(shape),
    },
  }
  place = t5x_layouts.key_value_store(folder)
  store = tensorstore.open(
    spec | {'kvstore': place | {'path': f'{place["path"]}{key}/'}}, create=True
  ).result()
  for source in sources:
    array = make(source.path).astype(dtype, copy=False)
    if source.layer is None:
      part = store
    else:
      part = store[(*(slice(None),) * t5x_names.LAYER_AXIS, source.layer)]
    part.write(array.reshape(part.shape)).result()
    shown.add(array.nbytes)
    # Frees the array before the next one is made.
    del array
  return spec


def _chunks(source: t5x_names.Source, itemsize: int) -> list[int]:
  chunks = list(source.tensor_shape)
  if source.layer is not None:
    # One layer per chunk, so that no chunk is rewritten for the next layer.
    chunks[t5x_names.LAYER_AXIS] = 1
  while np.prod(chunks) * itemsize > _CHUNK_BYTES:
    longest = int(np.argmax(chunks))
    chunks[longest] = -(-chunks[longest] // 2)
  return chunks
