"""Reads Hugging Face T5 directories, without torch or transformers.

Such a directory holds `config.json` and `model.safetensors`, or shards and
`model.safetensors.index.json`. T5 v1.0 and v1.1, Flan-T5, LM-adapted T5, ByT5,
mT5 and UMT5 are supported; `data.vocabularies` reads the vocabulary. Weights
are mapped from local disk, so remote directories are copied first.

A T5 with tied embeddings divides its logits by sqrt(emb_dim)
(`logits_via_embedding`). transformers 5 also writes tied models that do not
divide them. They are read as models with a separate output layer, initialised
with a copy of the embedding, which computes the same.
"""

from collections.abc import Callable, Mapping
import os
from typing import Any

from etils import epath
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf_config
from perlhf_jax.interop import hf_match
from perlhf_jax.interop import hf_names
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import stored
from perlhf_jax.models import t5_config

CONFIG = 'config.json'

_WEIGHTS = (safetensors_files.SINGLE, safetensors_files.INDEX)
_TOKENIZER = ('tokenizer_config.json', 'spiece.model')
_OTHER_WEIGHTS = (
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
  'flax_model.msgpack',
  'tf_model.h5',
)
_CONTENTS = (
  'a Hugging Face T5 directory holds config.json and model.safetensors (or '
  'model.safetensors.index.json and its shards)'
)


def is_hf_directory(path: str | os.PathLike[str]) -> bool:
  """Whether `path` is a directory with a file of a Hugging Face model.

  It may be incomplete: the functions below report missing files.

  Args:
    path: local or remote, such as `gs://bucket/flan-t5-xl`.

  Raises:
    CheckpointError: a remote directory cannot be reached.
  """
  names = (CONFIG, *_WEIGHTS, *_OTHER_WEIGHTS)
  with remote_files.explained(path):
    directory = epath.Path(path)
    return any((directory / name).exists() for name in names)


def load_config(path: str | os.PathLike[str]) -> t5_config.T5Config:
  """Reads the architecture of a Hugging Face T5 directory.

  Args:
    path: local or remote.

  Returns:
    A config in float32 with unrolled layers.

  Raises:
    CheckpointError: `config.json` is missing, or the model is not a supported
      T5.
  """
  with remote_files.explained(path):
    directory = _existing(path)
    raw = _read_config(directory)
  return hf_config.to_t5_config(raw, str(directory / CONFIG))


def local_directory(path: str | os.PathLike[str]) -> epath.Path:
  """Returns a local directory itself, or a local copy of a remote one.

  The copy has the files that are read, including the vocabulary. Later calls
  and processes reuse it; see `remote_files`.

  Args:
    path: local or remote.

  Raises:
    CheckpointError: the directory does not exist; or it is remote and
      incomplete, cannot be reached or does not fit on this machine.
  """
  with remote_files.explained(path):
    directory = _existing(path)
    if not remote_files.is_remote(path):
      return directory
    _read_config(directory)
    weights = safetensors_files.files_of(directory)
    if not weights:
      raise errors.CheckpointError(_no_weights(directory))
    tokenizer = [name for name in _TOKENIZER if (directory / name).exists()]
  return remote_files.copy_of(directory, [CONFIG, *weights, *tokenizer])


def load_params(
  path: str | os.PathLike[str],
  config: t5_config.T5Config,
  put: Callable[[str, Any], Any] = stored.read,
) -> dict[str, Any]:
  """Reads the weights of a Hugging Face T5 directory, one tensor at a time.

  Args:
    path: local or remote; a remote directory is read from its
      `local_directory`.
    config: configuration of the model to fill. The architecture must match the
      directory; `dtype`, `scan_layers` and the like may differ.
    put: called with a parameter's path and its array, a `stored.Stored` that
      `np.asarray` reads; returns the leaf of the result, such as a sharded
      array. By default it reads the array. Only one parameter at a time is in
      this host's memory.

  Returns:
    Nested dict with T5X's names and unrolled layers, whatever
    `config.scan_layers` is.

  Raises:
    CheckpointError: weights are missing, damaged, or of another architecture or
      shape; every tensor must be used and every parameter filled.
  """
  directory = local_directory(path)
  raw = _read_config(directory)
  _check_architecture(config, directory, raw)
  if not any((directory / name).exists() for name in _WEIGHTS):
    raise errors.CheckpointError(_no_weights(directory))
  table = hf_names.entries(config)
  reader = safetensors_files.Reader(directory)
  shapes = reader.shapes()
  embeddings = hf_match.embedding_names(shapes, config.logits_via_embedding)
  sources = hf_match.match(
    table, shapes, embeddings, hf_config.is_tied(raw), str(directory)
  )
  for name in embeddings[1:]:
    hf_match.check_copy(
      reader.read(name), name, reader.read(embeddings[0]), directory
    )
  arrays = {
    entry.path: reader.stored(
      sources[entry],
      entry.shape,
      np.transpose if entry.transposed else np.asarray,
    )
    for entry in table
  }
  return tree_paths.unflatten(
    {path: put(path, array) for path, array in arrays.items()}
  )


def _existing(path: str | os.PathLike[str]) -> epath.Path:
  directory = epath.Path(path)
  if not directory.is_dir():
    raise errors.CheckpointError(
      f'There is no directory {path}; {_CONTENTS}. A model of the hub must be '
      'downloaded first, for example with "hf download NAME --local-dir DIR".'
    )
  return directory


def _read_config(directory: epath.Path) -> dict[str, Any]:
  if not (directory / CONFIG).exists():
    raise errors.CheckpointError(
      f'{directory} has no {CONFIG}; {_CONTENTS}. Copy it from where the '
      'weights came from.'
    )
  return safetensors_files.read_json(directory / CONFIG)


def _check_architecture(
  config: t5_config.T5Config, directory: epath.Path, raw: Mapping[str, Any]
) -> None:
  source = str(directory / CONFIG)
  wanted = config.architecture()
  stored = hf_config.to_t5_config(raw, source).architecture()
  different = [
    f'{name} is {stored[name]} in the file and {wanted[name]} in the '
    'configuration'
    for name in wanted
    if wanted[name] != stored[name]
  ]
  if different:
    raise errors.CheckpointError(
      f'{source} describes another model than the configuration: '
      f'{"; ".join(different)}. Use the model configuration of the '
      'checkpoint, or another checkpoint.'
    )


def _no_weights(directory: epath.Path) -> str:
  others = [name for name in _OTHER_WEIGHTS if (directory / name).exists()]
  if not others:
    return f'{directory} has no weights; {_CONTENTS}.'
  # transformers only reads and writes local directories.
  remote = remote_files.is_remote(directory)
  place = 'COPY' if remote else directory
  convert = (
    'from transformers import AutoModelForSeq2SeqLM as M; '
    f"M.from_pretrained('{place}').save_pretrained('{place}')"
  )
  return (
    f'{directory} has its weights only as {", ".join(others)}; {_CONTENTS}. '
    f'Convert {"a local copy" if remote else "them"} where torch and '
    f'transformers are installed: python -c "{convert}"'
  )
