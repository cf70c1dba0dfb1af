"""Writes safetensors files, one tensor in memory at a time.

A file is a JSON header with the offsets of all tensors, followed by their
bytes: https://github.com/huggingface/safetensors#format. The writer of
safetensors needs all tensors of a file in memory.
"""

from collections.abc import Callable, Mapping
import json
import os
import pathlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_ALIGNMENT = 8
_NAMES = {np.dtype(np.float32): 'F32', np.dtype(ml_dtypes.bfloat16): 'BF16'}


class Tensor(NamedTuple):
  """A tensor to write.

  Attributes:
    shape: shape of the tensor.
    dtype: float32 or bfloat16, to which the tensor is rounded; the same for all
      tensors of a file, or in the order of `aligned`.
    make: returns the tensor; called once.
  """

  shape: tuple[int, ...]
  dtype: Any
  make: Callable[[], np.ndarray]

  @property
  def num_bytes(self) -> int:
    """Size in the file, in bytes."""
    return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def aligned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Returns tensors with the widest dtype first, else in their order.

  So each tensor of a file begins at a multiple of its dtype's size.
  """

  def width(item: tuple[str, Tensor]) -> int:
    return np.dtype(item[1].dtype).itemsize

  return dict(sorted(tensors.items(), key=width, reverse=True))


def write(
  path: pathlib.Path,
  tensors: Mapping[str, Tensor],
  max_shard_size: int | None = None,
) -> None:
  """Writes tensors into one file, or into shards with an index.

  Args:
    path: path of the file; shards and index have the same stem.
    tensors: tensors by name; each is made when it is written, in this order.
    max_shard_size: maximum size of a shard in bytes; a larger tensor gets its
      own shard. None for one file of any size.

  Raises:
    OSError: the disk is full or has another error.
    ValueError: a tensor is made with another shape than declared.
  """
  shards = _split(tensors, max_shard_size)
  if len(shards) == 1:
    _write_file(path, tensors)
    return
  weight_map = {}
  for number, names in enumerate(shards, 1):
    file = f'{path.stem}-{number:05}-of-{len(shards):05}{path.suffix}'
    _write_file(path.with_name(file), {name: tensors[name] for name in names})
    weight_map.update(dict.fromkeys(names, file))
  total = sum(tensor.num_bytes for tensor in tensors.values())
  index = {
    'metadata': {'total_size': total},
    'weight_map': dict(sorted(weight_map.items())),
  }
  path.with_name(f'{path.name}.index.json').write_text(
    json.dumps(index, indent=2) + '\n'
  )


def _split(
  tensors: Mapping[str, Tensor], max_shard_size: int | None
) -> list[list[str]]:
  if max_shard_size is None:
    return [list(tensors)]
  shards: list[list[str]] = [[]]
  room = max_shard_size
  for name, tensor in tensors.items():
    if shards[-1] and tensor.num_bytes > room:
      shards.append([])
      room = max_shard_size
    shards[-1].append(name)
    room -= tensor.num_bytes
  return shards


def _write_file(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
  # transformers 4 requires this entry.
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  start = 0
  for name, tensor in tensors.items():
    end = start + tensor.num_bytes
    header[name] = {
      'dtype': _NAMES[np.dtype(tensor.dtype)],
      'shape': list(tensor.shape),
      'data_offsets': [start, end],
    }
    start = end
  encoded = json.dumps(header).encode()
  encoded += b' ' * (-len(encoded) % _ALIGNMENT)
  with path.open('wb') as file:
    file.write(len(encoded).to_bytes(8, 'little'))
    file.write(encoded)
    for name, tensor in tensors.items():
      file.write(_made(name, tensor))
    file.flush()
    # Some disks only report here that they are full.
    os.fsync(file.fileno())


def _made(name: str, tensor: Tensor) -> memoryview:
  array = np.ascontiguousarray(tensor.make(), dtype=tensor.dtype)
  if array.shape != tuple(tensor.shape):
    raise ValueError(f'{name} is {array.shape}; {tensor.shape} was planned.')
  return memoryview(array.view(np.uint8).reshape(-1))
