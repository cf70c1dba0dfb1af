"""Writes model directories of other formats.

Each format describes its directory as `Contents`, which `write` writes. A
directory is either complete or does not exist: it is written under a hidden
name next to its target, and renamed last. Only one tensor at a time is in
memory.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import os
import pathlib
import shutil
from typing import Any

import jax
import ml_dtypes
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import safetensors_output
from perlhf_jax.interop import write_progress

# The default of transformers.
MAX_SHARD_SIZE = 5_000_000_000
# Dtypes in which weights can be written, by name.
DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}

# Files that `overwrite` may delete; all others belong to the user.
_REPLACEABLE = ('*.json', '*.safetensors', '*.model', 'README.md')

# Takes a parameter's path and leaf; returns an array in this host's memory.
Fetch = Callable[[str, Any], np.ndarray]


def as_numpy(path: str, leaf: Any) -> np.ndarray:
  """The `Fetch` for leaves that this host holds."""
  del path
  return np.asarray(leaf)


@dataclasses.dataclass(frozen=True)
class Contents:
  """The contents of a directory to write.

  Attributes:
    files: content of each small file, by its path in the directory.
    tensors: for each path of a safetensors file, its tensors by name. A
      `model.safetensors` that is too large becomes shards and an index.
  """

  files: Mapping[str, str | bytes]
  tensors: Mapping[str, Mapping[str, safetensors_output.Tensor]]

  def inside(self, folder: str) -> 'Contents':
    """Returns the same contents in a folder of the directory."""

    def moved(files):
      return {f'{folder}/{name}': value for name, value in files.items()}

    return Contents(moved(self.files), moved(self.tensors))

  def __or__(self, other: 'Contents') -> 'Contents':
    """Returns the union of both."""
    return Contents(
      {**self.files, **other.files}, {**self.tensors, **other.tensors}
    )


def write(
  contents: Contents,
  path: str | os.PathLike[str],
  *,
  overwrite: bool = False,
  max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
  """Writes a directory. All hosts call it, and host 0 writes.

  Args:
    contents: contents of the directory.
    path: local; created with its parents, or an existing empty directory.
    overwrite: whether to replace an existing model.
    max_shard_size: maximum size of a shard of `model.safetensors`, in bytes.

  Raises:
    CheckpointError: the directory is remote or exists already, or does not fit
      on the disk. Nothing of it is left then, and existing files stay. Only
      host 0 raises it, after as many fetches as on the other hosts.
  """
  pending = [
    tensor for file in contents.tensors.values() for tensor in file.values()
  ]
  if jax.process_index():
    for tensor in pending:
      tensor.make()
    return
  made = 0
  shown = write_progress.Progress(
    os.fspath(path), len(pending), sum(tensor.num_bytes for tensor in pending)
  )

  def counted(tensor: safetensors_output.Tensor) -> np.ndarray:
    nonlocal made
    made += 1
    array = tensor.make()
    shown.add(tensor.num_bytes)
    return array

  try:
    with (
      shown,
      _whole(pathlib.Path(path), path, overwrite, pending) as directory,
    ):
      _write_into(directory, contents, counted, max_shard_size)
  except errors.CheckpointError:
    if jax.process_count() > 1:
      # The other hosts go on fetching, and need this host for it.
      for tensor in pending[made:]:
        tensor.make()
    raise


def _write_into(
  directory: pathlib.Path,
  contents: Contents,
  make: Callable[[safetensors_output.Tensor], np.ndarray],
  max_shard_size: int,
) -> None:
  for name, tensors in contents.tensors.items():
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    is_model = file.name == safetensors_files.SINGLE
    safetensors_output.write(
      file,
      {
        name: tensor._replace(make=lambda tensor=tensor: make(tensor))
        for name, tensor in tensors.items()
      },
      max_shard_size if is_model else None,
    )
  # Written last, so that a directory cut short by a crash is not read as a
  # model.
  for name, content in contents.files.items():
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
      content = content.encode()
    file.write_bytes(content)


@contextlib.contextmanager
def _whole(
  target: pathlib.Path,
  path: str | os.PathLike[str],
  overwrite: bool,
  tensors: list[safetensors_output.Tensor],
) -> Iterator[pathlib.Path]:
  """Yields a directory that replaces `target` at the end."""
  if remote_files.is_remote(path):
    raise errors.CheckpointError(
      f'{os.fspath(path)} is remote, and directories of other formats are '
      'written to local disk; give a local directory and copy it.'
    )
  _check_free(target, overwrite)
  temporary = target.with_name(f'.{target.name}.writing-{os.getpid()}')
  try:
    temporary.mkdir(parents=True)
    free = shutil.disk_usage(temporary).free
    needed = sum(tensor.num_bytes for tensor in tensors)
    if needed > free:
      raise errors.CheckpointError(
        f'{target} needs {needed:,} bytes, but only {free:,} are free there; '
        'make room, or give a directory on another disk.'
      )
    yield temporary
    _replace(target, temporary)
  except OSError as error:
    raise errors.CheckpointError(
      f'{target} cannot be written ({error.strerror or error}); its partial '
      'files were removed. Make room or check who may write there, or give '
      'another directory.'
    ) from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _check_free(target: pathlib.Path, overwrite: bool) -> None:
  if not target.exists():
    return
  if not target.is_dir():
    raise errors.CheckpointError(f'{target} is a file; give a directory.')
  names = sorted(entry.name for entry in target.iterdir())
  if names and not overwrite:
    raise errors.CheckpointError(
      f'{target} already holds {safetensors_files.first(names)}; give another '
      'directory, or replace it with --overwrite.'
    )
  foreign = [
    str(file.relative_to(target))
    for file in sorted(target.rglob('*'))
    if file.is_file() and not any(map(file.match, _REPLACEABLE))
  ]
  if foreign:
    raise errors.CheckpointError(
      f'{target} holds {safetensors_files.first(foreign)}, which belongs to no '
      'model and would be lost; give another directory, or move it first.'
    )


def _replace(target: pathlib.Path, temporary: pathlib.Path) -> None:
  if not target.exists():
    temporary.rename(target)
    return
  former = target.with_name(f'.{target.name}.replaced-{os.getpid()}')
  target.rename(former)
  try:
    temporary.rename(target)
  except OSError:
    former.rename(target)
    raise
  shutil.rmtree(former)
