"""Reads the tensors of a T5X checkpoint through TensorStore."""

import math
import re
from typing import NamedTuple

from etils import epy
import ml_dtypes
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import host_memory
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import stored as stored_lib
from perlhf_jax.interop import t5x_layouts
from perlhf_jax.interop import t5x_names

# Not needed on machines that read no such file.
with epy.lazy_imports():
  import tensorstore

# Maximum size of the layers of one tensor that are read at once. Reading layers
# one by one would decode chunks that hold all layers once per layer.
BLOCK_BYTES = 512 * 1024**2

_FLOATS = ('float64', 'float32', 'float16', 'bfloat16')
_NO_FILE = 'NOT_FOUND'
# TensorStore appends its specification to messages, which does not help users.
_DETAILS = re.compile(r'\s*\[(tensorstore_spec|source locations)=.*', re.DOTALL)


class _Block(NamedTuple):
  """Layers of a tensor that were read at once: `[layers, ...]` from `start`."""

  tensor: str
  start: int
  layers: np.ndarray


class Reader:
  """Reads tensors, or their layers, one at a time.

  Read the layers of one tensor consecutively: the reader reads as many at once
  as fit into `BLOCK_BYTES`, at least one, and keeps them until it reads
  something else.
  """

  def __init__(self, index: t5x_layouts.Index):
    """Opens every tensor, without reading its values.

    Args:
      index: tensors of the step.

    Raises:
      CheckpointError: tensors are missing or damaged, differ from the index, or
        do not hold floating-point numbers.
    """
    self._what = index.folder
    self._arrays = {}
    self._block: _Block | None = None
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
      # TensorStore's exception classes depend on the failure and the version.
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
        f'{self._what}: tensor {name} has shape {list(shape)} in its own '
        f'files and {list(stored.shape)} in the file "{t5x_layouts.INDEX}". '
        'They belong to different checkpoints; copy the whole checkpoint '
        'again.'
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

  def stored(self, source: t5x_names.Source) -> stored_lib.Stored:
    """Returns a parameter that is read lazily.

    Reading it raises a CheckpointError if its files are missing or damaged.

    Args:
      source: source of the parameter; the tensor must exist.
    """
    name = source.tensor
    is_bfloat16 = name in self._as_bfloat16
    return stored_lib.Stored(
      source.shape,
      'bfloat16' if is_bfloat16 else _dtype_name(self._arrays[name]),
      name,
      lambda: self._parameter(source),
    )

  def _parameter(self, source: t5x_names.Source) -> np.ndarray:
    if source.layer is None:
      self._block = None
      array = self._read(source.tensor, slice(None))
    else:
      array = self._layer(source.tensor, source.layer)
    return array.astype(np.float32, order='C', copy=False).reshape(source.shape)

  def _layer(self, name: str, layer: int) -> np.ndarray:
    block = self._block
    if block and block.tensor == name:
      index = layer - block.start
      if 0 <= index < len(block.layers):
        return block.layers[index]
    # Frees the block before the next one is read.
    self._block = block = None
    axis, array = t5x_names.LAYER_AXIS, self._arrays[name]
    size, count = int(np.prod(array.shape)), array.shape[axis]
    step = max(1, BLOCK_BYTES * count // (size * _itemsize(array)))
    start = layer // step * step
    stop = min(start + step, count)
    index = (*(slice(None),) * axis, slice(start, stop))
    layers = np.moveaxis(self._read(name, index), axis, 0)
    self._block = _Block(name, start, layers)
    return layers[layer - start]

  def _read(self, name: str, index) -> np.ndarray:
    array = self._arrays[name]
    part = array[index]
    if not isinstance(part, np.ndarray):
      self._check_room(name, part)
      try:
        part = part.read().result()
      except Exception as error:
        raise errors.CheckpointError(
          f'{self._what}: tensor {name} cannot be read ({_short(error)}). Copy '
          'or download its files again.'
        ) from error
    if name in self._as_bfloat16:
      part = part.view(ml_dtypes.bfloat16)
    return part

  def _check_room(self, name: str, part) -> None:
    """Raises a CheckpointError if an array does not fit into memory.

    A few bytes of a file can declare an array, or a chunk, of any size.
    """
    chunk = part.chunk_layout.read_chunk.shape or ()
    most = max(math.prod(part.shape), math.prod(chunk))
    needed, free = most * _itemsize(part), host_memory.free_bytes()
    if needed > free:
      raise errors.CheckpointError(
        f'{self._what}: tensor {name} has shape {list(part.shape)} in chunks '
        f'of {list(chunk)} according to its files, and needs '
        f'{host_memory.gibibytes(needed)} of memory; '
        f'{host_memory.gibibytes(free)} are free.'
      )


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
