"""What a format of checkpoints is to the rest of the library."""

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

# A parameter's path and array, which `np.asarray` may have to read first ->
# what is kept of it.
Put = Callable[[str, Any], Any]


@dataclasses.dataclass(frozen=True)
class WriteOptions:
  """How a checkpoint is written.

  Attributes:
    dtype: 'float32' or 'bfloat16', of the weights; None for 'bfloat16' if the
      model is in it and 'float32' if not.
    overwrite: whether a model that is there is replaced.
    base: of adapters, where their base is or will be, as they record it; None
      for where it was loaded from.
  """

  dtype: str | None = None
  overwrite: bool = False
  base: str | None = None

  def check_new(self, what: str) -> None:
    """Raises a ConfigError of a format that replaces nothing.

    Args:
      what: it writes.
    """
    if self.overwrite:
      raise errors.ConfigError(
        f'{what} are written to a new folder: leave out --overwrite.'
      )

  def dtype_of(self, params: Mapping[str, Any]) -> str:
    """Returns the dtype in which weights are written."""
    return self.dtype or stored.dtype_of(tree_paths.flatten(params).values())


def fetch(path: str, leaf: Any) -> np.ndarray:
  """Makes a weight of `LoadedModel` an array of this host's memory."""
  if isinstance(leaf, jax.Array):
    return placement.to_host(leaf)
  return output.as_numpy(path, leaf)


def onto_mesh(shardings: Mapping[str, Any]) -> Put:
  """Returns what puts each array on the mesh, and keeps that.

  Args:
    shardings: of the parameters, nested.
  """
  places = tree_paths.flatten(shardings)
  return lambda path, leaf: placement.put(stored.read(path, leaf), places[path])


class Format(abc.ABC):
  """Tells one kind of checkpoints from others.

  Attributes:
    name: short, in lower case, for command lines.
    title: what a user is told to give, with its article.
  """

  name: str
  title: str

  @abc.abstractmethod
  def recognises(self, path: str) -> bool:
    """Whether a path holds such a checkpoint, a damaged one included.

    Args:
      path: local or remote; there may be nothing.

    Raises:
      CheckpointError: a remote path cannot be reached.
    """


class WritableFormat(Format):
  """Writes models.

  Attributes:
    keeps_adapters: whether `write` takes adapters beside their base; others
      take merged models.
  """

  keeps_adapters: bool = False

  @abc.abstractmethod
  def write(
    self,
    loaded: loaded_model.LoadedModel,
    target: str,
    options: WriteOptions,
  ) -> None:
    """Writes a model; on several hosts all of them call it.

    Args:
      loaded: has weights, each of which `fetch` makes an array of, and a
        vocabulary.
      target: a local folder, which is complete or not there afterwards.
      options: how.

    Raises:
      CheckpointError: the model has no such form, or the folder cannot be
        written or has something in it.
    """


class ModelFormat(Format):
  """Reads encoder-decoders, or what was trained on them.

  Formats of whole models are `WeightsFormat`s, those of adapters that do not
  tell of which model they are `AdapterFormat`s.
  """

  def settle(self, path: str) -> str:
    """Returns where exactly the weights lie that are read, and checks them.

    On several hosts all of them call it. That is the path itself, unless a
    format has several versions of a model, or can tell whether it is damaged.

    Args:
      path: that the format recognises.

    Raises:
      CheckpointError: what lies there is damaged.
    """
    return path

  @abc.abstractmethod
  def peek(self, path: str) -> loaded_model.LoadedModel:
    """Returns what lies at a path, without weights.

    Args:
      path: that the format recognises.

    Raises:
      CheckpointError: it cannot be used.
    """

  @abc.abstractmethod
  def load(
    self, peeked: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
  ) -> loaded_model.LoadedModel:
    """Reads the weights; `loading.load` puts them on their base.

    Args:
      peeked: of `peek`, and of adapters of `AdapterFormat.on_base`.
      mesh: where to put the weights.

    Raises:
      CheckpointError: they cannot be used.
    """


class AdapterFormat(ModelFormat):
  """Reads adapters that do not tell of which model they are.

  What `peek` returns has a `base`, whose path may be empty, and no `config`.
  """

  @abc.abstractmethod
  def on_base(
    self, peeked: loaded_model.LoadedModel, base: loaded_model.LoadedModel
  ) -> loaded_model.LoadedModel:
    """Returns what adapters are on a model, still without weights.

    Args:
      peeked: of `peek`.
      base: the model, without weights.

    Returns:
      `peeked` with `config`, `vocabulary` and `lora_config`.

    Raises:
      CheckpointError: they are not of such a model.
    """


class WeightsFormat(ModelFormat):
  """Reads whole models: a configuration, weights and a vocabulary."""

  @abc.abstractmethod
  def load_config(self, path: str) -> t5_config.T5Config:
    """Reads the architecture, with unrolled layers.

    Args:
      path: local or remote.

    Raises:
      CheckpointError: it is missing, or of no model that is supported.
    """

  @abc.abstractmethod
  def load_params(
    self, path: str, config: t5_config.T5Config, put: Put
  ) -> Mapping[str, Any]:
    """Reads the weights, one array at a time.

    Args:
      path: of `local_directory`.
      config: of `load_config`.
      put: what is kept of each array, such as its part on the mesh.

    Returns:
      A nested dict with our names and unrolled layers.

    Raises:
      CheckpointError: weights are missing, too many, damaged or misshapen.
    """

  @abc.abstractmethod
  def load_vocabulary(self, path: str) -> Any:
    """Reads the tokenizer; None if the format has none.

    Args:
      path: of `local_directory`.
    """

  def local_directory(self, path: str) -> str | os.PathLike[str]:
    """Returns where weights and vocabulary are read from.

    That is the path itself, unless a format copies what is remote.
    """
    return path

  def peek(self, path: str) -> loaded_model.LoadedModel:
    """Returns what lies at a path, without weights.

    A remote vocabulary is not copied for a look, and is None.
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
    """Returns what `load` does, but weights stay in their files if they can.

    They are read when they are written: no machine need hold the whole model.
    """
    return self.read(peeked, lambda name, leaf: leaf)

  def read(
    self, peeked: loaded_model.LoadedModel, put: Put
  ) -> loaded_model.LoadedModel:
    """Reads all there is, for `load` and `open`.

    Args:
      peeked: of `peek`.
      put: of `load_params`.

    Raises:
      CheckpointError: it cannot be used.
    """
    path, config = peeked.path, peeked.config
    directory = error = None
    try:
      directory = self.local_directory(path)
    except errors.CheckpointError as e:
      error = e
    # One host may have no room for a copy of a remote directory.
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
  """Reads image towers, which INITIAL_VIT_PATH puts in front of a T5."""

  @abc.abstractmethod
  def load_config(self, path: str) -> vit_config.ViTConfig:
    """Reads the architecture, as `WeightsFormat.load_config`."""

  @abc.abstractmethod
  def load_params(
    self, path: str, config: vit_config.ViTConfig, put: Put
  ) -> Mapping[str, Any]:
    """Reads the weights, as `WeightsFormat.load_params`.

    Args:
      path: local or remote.
      config: of `load_config`.
      put: what is kept of each array.
    """
