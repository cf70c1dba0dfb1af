"""The interface of checkpoint formats."""

import abc
from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

import jax
import numpy as np

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import output
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import stored
from perlhf_jax.models import t5_config
from perlhf_jax.models import vit_config
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# (parameter's path, array or an object that `np.asarray` reads) -> the value to
# keep.
Put = Callable[[str, Any], Any]


@dataclasses.dataclass(frozen=True)
class WriteOptions:
  """How to write a checkpoint.

  Attributes:
    dtype: dtype of the weights, 'float32' or 'bfloat16'; None for 'bfloat16' if
      the model is in bfloat16, else 'float32'.
    overwrite: whether to replace an existing model.
    base: the path of their base that adapters record; None for the path from
      which it was loaded.
  """

  dtype: str | None = None
  overwrite: bool = False
  base: str | None = None

  def check_new(self, what: str) -> None:
    """Raises a ConfigError if `overwrite` is set; for formats without it.

    Args:
      what: what the format writes, for the message.
    """
    if self.overwrite:
      raise errors.ConfigError(
        f'{what} are written to a new folder: leave out --overwrite.'
      )

  def dtype_of(self, params: Mapping[str, Any]) -> str:
    """Returns the dtype to write weights in."""
    return self.dtype or stored.dtype_of(tree_paths.flatten(params).values())


def fetch(path: str, leaf: Any) -> np.ndarray:
  """Returns a weight of `LoadedModel` as an array in this host's memory."""
  if isinstance(leaf, jax.Array):
    return placement.to_host(leaf)
  return output.as_numpy(path, leaf)


def onto_mesh(shardings: Mapping[str, Any]) -> Put:
  """Returns a `Put` that places each array on the mesh.

  Args:
    shardings: nested shardings of the parameters.
  """
  places = tree_paths.flatten(shardings)
  return lambda path, leaf: placement.put(stored.read(path, leaf), places[path])


class Format(abc.ABC):
  """Recognises one kind of checkpoints.

  Attributes:
    name: a short name in lower case, for command lines.
    title: the name in messages, with its article.
  """

  name: str
  title: str

  @abc.abstractmethod
  def recognises(self, path: str) -> bool:
    """Whether a path holds a checkpoint of this format, even a damaged one.

    Args:
      path: local or remote; it need not exist.

    Raises:
      CheckpointError: a remote path cannot be reached.
    """


class WritableFormat(Format):
  """Writes models.

  Attributes:
    keeps_adapters: whether `write` takes a model with separate adapters; if
      not, it takes merged models.
  """

  keeps_adapters: bool = False

  @abc.abstractmethod
  def write(
    self,
    loaded: loaded_model.LoadedModel,
    target: str,
    options: WriteOptions,
  ) -> None:
    """Writes a model; all hosts must call it.

    Args:
      loaded: a model with a vocabulary, and with weights that `fetch` can read.
      target: a local folder; afterwards it is complete or does not exist.
      options: how to write it.

    Raises:
      CheckpointError: the format cannot hold the model, or the folder cannot be
        written or is not empty.
    """


class ModelFormat(Format):
  """Reads encoder-decoders, or adapters trained on them.

  Subclass `WeightsFormat` for formats of whole models, and `AdapterFormat` for
  formats of adapters that do not record their model.
  """

  def settle(self, path: str) -> str:
    """Returns the exact path of the weights to read, after checking them.

    All hosts must call it. The default returns the path itself. Formats that
    hold several versions of a model, or can detect damage, override it.

    Args:
      path: a path that the format recognises.

    Raises:
      CheckpointError: the checkpoint is damaged.
    """
    return path

  @abc.abstractmethod
  def peek(self, path: str) -> loaded_model.LoadedModel:
    """Returns the model at a path, without weights.

    Args:
      path: a path that the format recognises.

    Raises:
      CheckpointError: the checkpoint cannot be used.
    """

  @abc.abstractmethod
  def load(
    self, peeked: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
  ) -> loaded_model.LoadedModel:
    """Reads the weights; `loading.load` adds the base.

    Args:
      peeked: the result of `peek`, or of `AdapterFormat.on_base` for adapters.
      mesh: where to put the weights.

    Raises:
      CheckpointError: the weights cannot be used.
    """


class AdapterFormat(ModelFormat):
  """Reads adapters that do not record the architecture of their model.

  The result of `peek` has a `base`, whose path may be empty, and no `config`.
  """

  @abc.abstractmethod
  def on_base(
    self, peeked: loaded_model.LoadedModel, base: loaded_model.LoadedModel
  ) -> loaded_model.LoadedModel:
    """Completes the description of adapters from their base.

    Args:
      peeked: the result of `peek`.
      base: the base, without weights.

    Returns:
      `peeked` with `config`, `vocabulary` and `lora_config`, without weights.

    Raises:
      CheckpointError: the adapters do not fit the base.
    """


class WeightsFormat(ModelFormat):
  """Reads whole models: a configuration, weights and a vocabulary."""

  @abc.abstractmethod
  def load_config(self, path: str) -> t5_config.T5Config:
    """Reads the architecture, with unrolled layers.

    Args:
      path: local or remote.

    Raises:
      CheckpointError: the configuration is missing, or the model is not
        supported.
    """

  @abc.abstractmethod
  def load_params(
    self, path: str, config: t5_config.T5Config, put: Put
  ) -> Mapping[str, Any]:
    """Reads the weights, one array at a time.

    Args:
      path: the result of `local_directory`.
      config: the result of `load_config`.
      put: returns the value to keep for each array, such as its shards on the
        mesh.

    Returns:
      A nested dict with our names and unrolled layers.

    Raises:
      CheckpointError: weights are missing, unexpected, damaged or of a wrong
        shape.
    """

  @abc.abstractmethod
  def load_vocabulary(self, path: str) -> Any:
    """Reads the tokenizer; None if the format has none.

    Args:
      path: the result of `local_directory`.
    """

  def local_directory(self, path: str) -> str | os.PathLike[str]:
    """Returns the path to read weights and vocabulary from.

    The default returns the path itself. Formats that copy remote directories
    override it.
    """
    return path

  def peek(self, path: str) -> loaded_model.LoadedModel:
    """Returns the model at a path, without weights.

    A remote vocabulary is not copied; then `vocabulary` is None.
    """
    is_remote = remote_files.is_remote(path)
    return loaded_model.LoadedModel(
      config=self.load_config(path),
      vocabulary=None if is_remote else self.load_vocabulary(path),
      path=path,
      source=self.title,
    )

  def load(
    self, peeked: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
  ) -> loaded_model.LoadedModel:
    """Reads weights and vocabulary."""
    places = loaded_model.params_shardings(peeked.config, mesh)
    return self.read(peeked, onto_mesh(places))

  def open(self, peeked: loaded_model.LoadedModel) -> loaded_model.LoadedModel:
    """Loads as `load` does, but leaves weights in their files if it can.

    Weights are read when they are written, so no machine must hold the whole
    model.
    """
    return self.read(peeked, lambda name, leaf: leaf)

  def read(
    self, peeked: loaded_model.LoadedModel, put: Put
  ) -> loaded_model.LoadedModel:
    """Reads weights and vocabulary, for `load` and `open`.

    Args:
      peeked: the result of `peek`.
      put: see `load_params`.

    Raises:
      CheckpointError: the checkpoint cannot be used.
    """
    path, config = peeked.path, peeked.config
    directory = error = None
    try:
      directory = self.local_directory(path)
    except errors.CheckpointError as e:
      error = e
    # One host may lack disk space for a copy of a remote directory.
    multihost.raise_together(error)

    def put_named(name, leaf):
      if isinstance(leaf, stored.Stored):
        leaf = leaf.through(read_named)
      return put(name, leaf)

    def read_named(leaf):
      with remote_files.named(path, directory):
        return np.asarray(leaf)

    with remote_files.named(path, directory):
      params = self.load_params(str(directory), config, put_named)
      vocabulary = self.load_vocabulary(str(directory))
    return dataclasses.replace(peeked, vocabulary=vocabulary, params=params)


class VitFormat(Format):
  """Reads image towers, which INITIAL_VIT_PATH adds to a T5."""

  @abc.abstractmethod
  def load_config(self, path: str) -> vit_config.ViTConfig:
    """Reads the architecture; see `WeightsFormat.load_config`."""

  @abc.abstractmethod
  def load_params(
    self, path: str, config: vit_config.ViTConfig, put: Put
  ) -> Mapping[str, Any]:
    """Reads the weights; see `WeightsFormat.load_params`.

    Args:
      path: local or remote.
      config: the result of `load_config`.
      put: returns the value to keep for each array.
    """
