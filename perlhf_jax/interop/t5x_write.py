"""Writes weights as T5X's loader reads them: msgpack and zarr, version 3."""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import shutil
from typing import Any

from etils import epy
from flax import serialization
import jax
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.interop import t5x_layouts

with epy.lazy_imports():
  import tensorstore

VERSION = 3

# As T5X's: small enough for any way to split the reading.
_CHUNK_BYTES = 64 * 1024**2


def write(
  arrays: Mapping[str, jax.Array | np.ndarray],
  target: pathlib.Path,
  step: int,
) -> None:
  """Writes a step, which gets its name when it is complete.

  Args:
    arrays: of each name, such as 'encoder/encoder_norm/scale', the tensor,
      whose dtype is kept; one at a time is copied to the host.
    target: the folder to make.
    step: what T5X takes for the number of steps of training.

  Raises:
    CheckpointError: it cannot be written; nothing of it is left.
  """
  partial = target.with_name(f'{target.name}.tmp-{os.getpid()}')
  with _removed_on_failure(partial, target):
    partial.mkdir(parents=True)
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
      *modules, last = name.split('/')
      node = tree
      for module in modules:
        node = node.setdefault(module, {})
      node[last] = _write_array(np.asarray(array), name, partial)
    content = {
      'version': VERSION,
      'optimizer': {
        'state': {'param_states': {}, 'step': np.asarray(step, np.int32)},
        'target': tree,
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
  try:
    yield
  # TensorStore makes a ValueError of a full disk.
  except (OSError, ValueError) as error:
    shutil.rmtree(partial, ignore_errors=True)
    raise errors.CheckpointError(
      f'{target} cannot be written ({error}). Choose a folder that you may '
      'write to, on a disk with room for the weights; nothing was left there.'
    ) from error
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _write_array(
  array: np.ndarray, name: str, folder: pathlib.Path
) -> dict[str, Any]:
  """Writes one array, and returns its specification with a relative path."""
  key = '.'.join(('target', *name.split('/')))
  spec = {
    'driver': 'zarr',
    'dtype': array.dtype.name,
    'kvstore': {'driver': 'file', 'path': f'{key}/'},
    'metadata': {
      'chunks': _chunks(array.shape, array.dtype.itemsize),
      'compressor': {'id': 'gzip', 'level': 1},
      'shape': list(array.shape),
    },
  }
  place = t5x_layouts.key_value_store(folder)
  store = spec | {'kvstore': place | {'path': f'{place["path"]}{key}/'}}
  tensorstore.open(store, create=True).result().write(array).result()
  return spec


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
  chunks = list(shape)
  while np.prod(chunks) * itemsize > _CHUNK_BYTES:
    longest = int(np.argmax(chunks))
    chunks[longest] = -(-chunks[longest] // 2)
  return chunks
