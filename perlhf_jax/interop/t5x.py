"""T5X checkpoints, in and out, without T5X.

Read are what T5X has written since 2021, of its minimal and of its scalable
network (UMT5's), from local folders and, in place, from `gs://`; see
`t5x_layouts`. Written is what every T5X reads, msgpack and zarr, of the network
that has the model: the scalable one if each layer has a position bias of its
own, and the minimal one if not. An optimizer's state is neither read nor
written, and neither is the vocabulary: T5X has it in gin files.

Names and shapes tell the model but for its activation, which is taken for that
of the published ones; see `t5x_names.infer`.
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
  """Whether `path` is a T5X checkpoint, or a folder with some.

  It need not be complete: what is missing is for the functions below to say.

  Args:
    path: local or remote, such as `gs://bucket/t5_1_1_xl/checkpoint_1000000`.

  Raises:
    CheckpointError: a remote folder cannot be reached.
  """
  with remote_files.explained(path):
    return t5x_layouts.find(path) is not None


def load_config(path: str | os.PathLike[str]) -> t5_config.T5Config:
  """Tells the architecture of a T5X checkpoint by its tensors' shapes.

  Args:
    path: of a step, or of a folder of steps, of which the newest is meant;
      local or remote.

  Returns:
    A config in float32 with unrolled layers.

  Raises:
    CheckpointError: there is no checkpoint, it is damaged, or of no T5.
  """
  return load_config_and_form(path)[0]


def load_config_and_form(
  path: str | os.PathLike[str],
) -> tuple[t5_config.T5Config, t5x_names.Form]:
  """Tells, beside the architecture, how the checkpoint holds its tensors.

  Args:
    path: as for `load_config`.

  Raises:
    CheckpointError: as there.
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
    config: of the model to fill; what shapes tell of its architecture must be
      the checkpoint's, while the activation's name, `dtype`, `scan_layers` and
      the like are free.
    put: as of `hf.load_params`. Of layers that are one tensor as many are in
      this host's memory as `t5x_read.BLOCK_BYTES` allows.

  Returns:
    Nested dict with the names of T5X's minimal network and unrolled layers,
    whatever `config.scan_layers` is.

  Raises:
    CheckpointError: weights are missing, damaged, of another architecture or
      of another shape; every tensor must be used and every parameter filled.
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
    params: unrolled and unboxed; of arrays, or of any leaves with a shape that
      `fetch` makes arrays of.
    config: of the model.
    path: local folder to write the step into, made if need be.
    step: of training, which T5X goes on counting from.
    dtype: 'float32' or 'bfloat16', to which weights are rounded.
    fetch: of a parameter's path and leaf, makes an array of this host's memory.

  Returns:
    The step's folder, `checkpoint_<step>` in `path`, which T5X is to be given.
    It gets this name when it is complete.

  Raises:
    CheckpointError: the folder already holds a T5X checkpoint or cannot be
      written to, or `params` are not those of `config`.
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
    raise errors.CheckpointError(f'step is {step}; T5X counts from 0.')
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
        f'{os.fspath(path)} is {"no T5X checkpoint" if there else "no folder"}'
        f'; {t5x_layouts.CONTENTS}.'
      )
    index = t5x_layouts.read(folder)
    return t5x_read.Reader(index), os.fspath(folder)
