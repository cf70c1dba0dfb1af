"""Reads and writes T5X checkpoints, without T5X.

It reads the checkpoints that T5X has written since 2021, of its minimal and its
scalable network (UMT5's), from local folders and directly from `gs://`; see
`t5x_layouts`. It writes msgpack and zarr, which every T5X reads, for the T5X
network that has the model: the scalable network if each layer has its own
position bias, else the minimal one. Optimizer state is neither read nor
written. Neither is the vocabulary, which T5X names in gin files.

Names and shapes of tensors determine the model except for its activation, which
is assumed to be that of the published models; see `t5x_names.infer`.
"""

from collections.abc import Callable
import os
import pathlib
from typing import Any

from etils import epath
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import output
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import stored
from perlhf_jax.interop import t5x_layouts
from perlhf_jax.interop import t5x_names
from perlhf_jax.interop import t5x_read
from perlhf_jax.interop import t5x_write
from perlhf_jax.models import t5_config


def is_t5x_checkpoint(path: str | os.PathLike[str]) -> bool:
  """Whether `path` is a T5X checkpoint, or a folder of checkpoints.

  It may be incomplete: the functions below report missing files.

  Args:
    path: local or remote, such as `gs://bucket/t5_1_1_xl/checkpoint_1000000`.

  Raises:
    CheckpointError: a remote folder cannot be reached.
  """
  with remote_files.explained(path):
    return t5x_layouts.find(path) is not None


def load_config(path: str | os.PathLike[str]) -> t5_config.T5Config:
  """Infers the architecture of a T5X checkpoint from its tensors' shapes.

  Args:
    path: path of a step, or of a folder of steps, of which the newest is used;
      local or remote.

  Returns:
    A config in float32 with unrolled layers.

  Raises:
    CheckpointError: there is no checkpoint, it is damaged, or not a T5.
  """
  return load_config_and_form(path)[0]


def load_config_and_form(
  path: str | os.PathLike[str],
) -> tuple[t5_config.T5Config, t5x_names.Form]:
  """Infers the architecture, and the form of the checkpoint's tensors.

  Args:
    path: as for `load_config`.

  Raises:
    CheckpointError: as in `load_config`.
  """
  reader, what = _open(path)
  shapes = reader.shapes()
  config, form = t5x_names.infer(shapes, what)
  t5x_names.check(t5x_names.sources(config, form), shapes, what)
  return config, form


def load_params(
  path: str | os.PathLike[str],
  config: t5_config.T5Config,
  put: Callable[[str, Any], Any] = stored.read,
) -> dict[str, Any]:
  """Reads the weights of a T5X checkpoint, one tensor at a time.

  Args:
    path: as for `load_config`.
    config: configuration of the model to fill. The architecture, as far as
      shapes determine it, must match the checkpoint; the activation's name,
      `dtype`, `scan_layers` and the like may differ.
    put: as in `hf.load_params`. If layers are stored as one tensor, up to
      `t5x_read.BLOCK_BYTES` of them are in this host's memory.

  Returns:
    Nested dict with the names of T5X's minimal network and unrolled layers,
    whatever `config.scan_layers` is.

  Raises:
    CheckpointError: weights are missing, damaged, or of another architecture or
      shape; every tensor must be used and every parameter filled.
  """
  reader, what = _open(path)
  shapes = reader.shapes()
  stored, form = t5x_names.infer(shapes, what)
  t5x_names.check_architecture(config, stored, what)
  table = t5x_names.sources(config, form)
  t5x_names.check(table, shapes, what)
  return tree_paths.unflatten(
    {source.path: put(source.path, reader.stored(source)) for source in table}
  )


def save(
  params: typing.Params,
  config: t5_config.T5Config,
  path: str | os.PathLike[str],
  step: int,
  *,
  dtype: str = 'float32',
  fetch: output.Fetch = output.as_numpy,
) -> pathlib.Path:
  """Writes a model as a checkpoint that T5X's own loader restores.

  Args:
    params: unrolled and unboxed parameters; the leaves are arrays, or have a
      shape and become arrays through `fetch`.
    config: configuration of the model.
    path: local folder of the step, created if it does not exist.
    step: training step, from which T5X goes on counting.
    dtype: 'float32' or 'bfloat16', to which weights are rounded.
    fetch: called with a parameter's path and leaf; returns an array in this
      host's memory.

  Returns:
    The step's folder for T5X, `checkpoint_<step>` in `path`. It gets this name
    when it is complete.

  Raises:
    CheckpointError: the folder already holds a T5X checkpoint or cannot be
      written to, or `params` do not match `config`.
  """
  if remote_files.is_remote(path):
    raise errors.CheckpointError(
      f'{os.fspath(path)} is not on this machine. Write the checkpoint to a '
      'local folder and copy it, for example with "gcloud storage cp -r".'
    )
  folder = pathlib.Path(path)
  target = folder / f'{t5x_layouts.STEP_PREFIX}{step}'
  if target.exists() or is_t5x_checkpoint(folder):
    raise errors.CheckpointError(
      f'{folder} already holds a T5X checkpoint; give another folder or remove '
      'it first.'
    )
  if step < 0:
    raise errors.CheckpointError(
      f'step is {step}; give 0 or more, as T5X counts.'
    )
  flat = hf_output.check_params(
    params, t5x_names.parameters(config), 'T5Config'
  )
  table = t5x_names.sources(config, t5x_names.native_form(config))
  t5x_write.write(
    table,
    lambda name: fetch(name, flat[name]),
    target,
    step,
    np.dtype(output.DTYPES[dtype]),
  )
  return target


def _open(path: str | os.PathLike[str]) -> tuple[t5x_read.Reader, str]:
  with remote_files.explained(path):
    folder = t5x_layouts.find(path)
    if folder is None:
      there = epath.Path(path).is_dir()
      raise errors.CheckpointError(
        f'{os.fspath(path)} is '
        f'{"not a T5X checkpoint" if there else "not a folder"}; '
        f'{t5x_layouts.CONTENTS}.'
      )
    index = t5x_layouts.read(folder)
    return t5x_read.Reader(index), os.fspath(folder)
