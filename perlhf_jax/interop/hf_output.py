"""Describes a Hugging Face T5 directory to write, for `transformers`.

Tied models stay tied: the embedding is stored once, under one name.
"""

from collections.abc import Mapping
import json
from typing import Any

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_config
from perlhf_jax.interop import hf_match
from perlhf_jax.interop import hf_names
from perlhf_jax.interop import hf_tokenizer
from perlhf_jax.interop import output
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import safetensors_output
from perlhf_jax.interop import stored
from perlhf_jax.models import t5_config


def contents(
  params: typing.Params,
  config: t5_config.T5Config,
  *,
  vocabulary: Mapping[str, Any],
  dtype: str = 'float32',
  model_type: str | None = None,
  fetch: output.Fetch = output.as_numpy,
) -> output.Contents:
  """Describes the directory of a model.

  Args:
    params: unrolled and unboxed parameters; the leaves are arrays, or have a
      shape and become arrays through `fetch`.
    config: configuration of the model.
    vocabulary: vocabulary from `data.vocabularies.to_dict`.
    dtype: 'float32' or 'bfloat16', to which weights are rounded.
    model_type: 't5', 'mt5' or 'umt5'; None for the type under which such models
      are published.
    fetch: called with a parameter's path and leaf; returns an array in this
      host's memory.

  Raises:
    CheckpointError: the architecture has no Hugging Face counterpart, or
      `params` do not match `config`.
  """
  raw = hf_config.from_t5_config(config, model_type)
  table = hf_names.entries(config)
  flat = check_params(
    params, {entry.path: entry.shape for entry in table}, 'T5Config'
  )
  table = stored.layers_together(table, flat)

  def tensor(entry: hf_names.Entry) -> safetensors_output.Tensor:
    def make():
      array = fetch(entry.path, flat[entry.path])
      return array.T if entry.transposed else array

    return safetensors_output.Tensor(
      entry.tensor_shape, output.DTYPES[dtype], make
    )

  generation = {
    key: raw[key]
    for key in ('decoder_start_token_id', 'eos_token_id', 'pad_token_id')
  }
  tokenizer = hf_tokenizer.files(vocabulary)
  return output.Contents(
    {
      **tokenizer,
      'generation_config.json': to_json(generation),
      # The older key, which both transformers 4 and 5 read.
      hf.CONFIG: to_json({**raw, 'torch_dtype': dtype}),
    },
    {
      safetensors_files.SINGLE: {entry.tensor: tensor(entry) for entry in table}
    },
  )


def check_params(
  params: typing.Params, shapes: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, Any]:
  """Returns flattened parameters, after a check of their names and shapes.

  Args:
    params: nested dict of leaves with a shape.
    shapes: expected shapes, by path.
    source: origin of `shapes`, for messages.

  Raises:
    CheckpointError: names or shapes differ.
  """
  flat = tree_paths.flatten(params)
  hf_match.check_names(
    expected=set(shapes),
    found=set(flat),
    what=f'params are not the unrolled parameters of their {source}',
    kind='parameters',
  )
  for path, shape in shapes.items():
    hf_match.check_shape(f'parameter {path}', flat[path].shape, shape, source)
  return flat


def to_json(value: Mapping[str, Any]) -> str:
  """Returns the text of a configuration file."""
  return json.dumps(value, indent=2, sort_keys=True) + '\n'
