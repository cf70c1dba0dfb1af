"""Reads the tensors of a T5X checkpoint through TensorStore."""

from collections.abc import Iterator
import re

from etils import epy
import ml_dtypes
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import t5x_layouts
from perlhf_jax.interop import t5x_names

# A machine that reads no such file need not have it.
with epy.lazy_imports():
  import tensorstore

# Layers of one tensor that are read at once: one read of each would decode
# chunks that hold all of them as often as there are layers.
BLOCK_BYTES = 512 * 1024**2

_FLOATS = ('float64', 'float32', 'float16', 'bfloat16')
_NO_FILE = 'NOT_FOUND'
# TensorStore appends its specification, which says nothing to a user.
_DETAILS = re.compile(r'\s*\[(tensorstore_spec|source locations)=.*', re.DOTALL)


class Reader:
  """Reads tensors, or layers of them, one at a time."""

  def __init__(self, index: t5x_layouts.Index):
    """Opens every tensor, without reading one.

    Args:
      index: what there is.

    Raises:
      CheckpointError: tensors are missing or damaged, differ from what the
        index says of them or do not hold floating-point numbers.
    """
    self._what = index.folder
    self._arrays = {}
    self._as_bfloat16 = set()
    waiting = {
      name: tensorstore.open(stored.spec, open=True, read=True)
      for name, stored in index.tensors.items()
      if stored.spec is not None
    }
    missing, damaged = [], []
    for name, stored in index.tensors.items():
      if stored.value is not None:
        self._arrays[name] = stored.value
        continue
      try:
        self._arrays[name] = waiting[name].result()
      # TensorStore raises by the kind of failure, and more kinds by version.
      except Exception as error:
        if _NO_FILE in str(error):
          missing.append(name)
        else:
          damaged.append(f'{name} ({_short(error)})')
    if missing:
      raise errors.CheckpointError(
        f'{self._what} lists tensors whose files are missing: '
        f'{safetensors_files.first(sorted(missing))}. Copy or download them '
        'too.'
      )
    if damaged:
      raise errors.CheckpointError(
        f'{self._what} has tensors that cannot be opened: '
        f'{safetensors_files.first(sorted(damaged))}. Copy or download them '
        'again.'
      )
    for name, stored in index.tensors.items():
      self._check(name, stored, index.bfloat16_as_uint16)

  def _check(
    self, name: str, stored: t5x_layouts.Stored, bfloat16_as_uint16: bool
  ) -> None:
    array = self._arrays[name]
    shape, dtype = tuple(array.shape), _dtype_name(array)
    if stored.shape is not None and shape != stored.shape:
      raise errors.CheckpointError(
        f'{self._what}: tensor {name} has shape {list(shape)} in its own files '
        f'and {list(stored.shape)} in the file "{t5x_layouts.INDEX}". They are '
        'not of one checkpoint; copy all of it again.'
      )
    if dtype == 'uint16' and bfloat16_as_uint16:
      self._as_bfloat16.add(name)
    elif dtype not in _FLOATS:
      raise errors.CheckpointError(
        f'{self._what}: tensor {name} is {dtype}; supported are '
        f'{", ".join(_FLOATS)}. Quantised weights must be saved in one of '
        'these first.'
      )

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor."""
    return {name: tuple(array.shape) for name, array in self._arrays.items()}

  def read(self, name: str) -> np.ndarray:
    """Returns a tensor in float32.

    Raises:
      CheckpointError: its files are missing or damaged.
    """
    return self._read(name, slice(None))

  def layers(self, name: str) -> Iterator[np.ndarray]:
    """Yields the layers of a tensor in float32, in order.

    As many are held at once as fit into `BLOCK_BYTES`, or one.

    Args:
      name: of a tensor with layers along `t5x_names.LAYER_AXIS`.

    Raises:
      CheckpointError: its files are missing or damaged.
    """
    axis, array = t5x_names.LAYER_AXIS, self._arrays[name]
    count = array.shape[axis]
    size = int(np.prod(array.shape)) * _itemsize(array)
    step = max(1, BLOCK_BYTES * count // size)
    for start in range(0, count, step):
      stop = min(start + step, count)
      block = self._read(
        name, (*(slice(None),) * axis, slice(start, stop)), cast=False
      )
      for layer in np.moveaxis(block, axis, 0):
        yield layer.astype(np.float32, order='C')

  def _read(self, name: str, index, cast: bool = True) -> np.ndarray:
    array = self._arrays[name]
    part = array[index]
    if not isinstance(part, np.ndarray):
      try:
        part = part.read().result()
      except Exception as error:
        raise errors.CheckpointError(
          f'{self._what}: tensor {name} cannot be read ({_short(error)}). Copy '
          'or download its files again.'
        ) from error
    if name in self._as_bfloat16:
      part = part.view(ml_dtypes.bfloat16)
    return part.astype(np.float32, copy=False) if cast else part


def _dtype_name(array) -> str:
  dtype = array.dtype
  return dtype.name if isinstance(dtype, np.dtype) else str(dtype.name)


def _itemsize(array) -> int:
  dtype = array.dtype
  if not isinstance(dtype, np.dtype):
    dtype = dtype.numpy_dtype
  return dtype.itemsize


def _short(error: Exception) -> str:
  return _DETAILS.sub('', str(error))
