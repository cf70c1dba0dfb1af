"""Reads and writes a PaLI as a directory of its parts.

No other package has PaLI as one model. `t5` and `siglip` are directories that
`transformers` loads, with the tokenizer in `t5`. `image_projection.safetensors`
holds the linear map between them, `weight` `[embed, width]` and `bias`
`[embed]`, as in a `torch.nn.Linear`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

from etils import epath
import numpy as np

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import named_tensors
from perlhf_jax.interop import output
from perlhf_jax.interop import readmes
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import safetensors_output
from perlhf_jax.interop import siglip
from perlhf_jax.interop import siglip_output
from perlhf_jax.interop import stored
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config

T5 = 't5'
SIGLIP = 'siglip'
PROJECTION = 'image_projection.safetensors'

_VIT = 'vit'
_PROJECTION = 'image_projection'


def is_pali_directory(path: str | os.PathLike[str]) -> bool:
  """Whether a directory, local or remote, holds the parts of a PaLI.

  It may be incomplete: the functions below report missing files.

  Raises:
    CheckpointError: a remote directory cannot be reached.
  """
  with remote_files.explained(path):
    directory = epath.Path(path)
    return (directory / PROJECTION).exists() or all(
      (directory / part).is_dir() for part in (T5, SIGLIP)
    )


def load_config(path: str | os.PathLike[str]) -> pali_config.PaliConfig:
  """Reads the architecture of both parts, in float32 with unrolled layers.

  Args:
    path: path of the directory, local or remote.

  Raises:
    CheckpointError: a part is missing or not supported.
  """
  return pali_config.in_front_of(
    hf.load_config(epath.Path(path) / T5),
    siglip.load_config(epath.Path(path) / SIGLIP),
    os.fspath(path),
  )


def load_params(
  path: str | os.PathLike[str],
  config: pali_config.PaliConfig,
  put: Callable[[str, Any], Any] = stored.read,
) -> dict[str, Any]:
  """Reads the weights of all parts, one tensor at a time.

  Args:
    path: path of the directory, local or remote.
    config: configuration of the model to fill.
    put: as in `hf.load_params`, with paths in the whole model.

  Returns:
    Nested dict with unrolled layers.

  Raises:
    CheckpointError: weights of a part are missing, damaged or of another
      architecture or shape.
  """
  params = hf.load_params(epath.Path(path) / T5, _t5_config(config), put)
  params[_VIT] = siglip.load_params(
    epath.Path(path) / SIGLIP,
    config.vit,
    lambda name, array: put(f'{_VIT}/{name}', array),
  )
  shapes = _shapes(config)
  reader = named_tensors.reader(
    path, PROJECTION, shapes, source='PaliConfig', whole='PaLI'
  )
  params[_PROJECTION] = {
    leaf: put(
      f'{_PROJECTION}/{leaf}',
      reader.stored(tensor, shapes[tensor][::-1], np.transpose),
    )
    for leaf, tensor in (('kernel', 'weight'), ('bias', 'bias'))
  }
  return params


def contents(
  params: typing.Params,
  config: pali_config.PaliConfig,
  *,
  vocabulary: Mapping[str, Any],
  dtype: str = 'float32',
  model_type: str | None = None,
  fetch: output.Fetch = output.as_numpy,
) -> output.Contents:
  """Describes the directory of a PaLI; arguments as in `hf_output.contents`.

  Raises:
    CheckpointError: the T5's architecture has no Hugging Face counterpart, or
      `params` do not match `config`.
  """
  params = dict(params)
  vit = params.pop(_VIT, {})
  projection = tree_paths.flatten({_PROJECTION: params.pop(_PROJECTION, {})})
  width, embed = config.vit.width, config.emb_dim
  kernel, bias = f'{_PROJECTION}/kernel', f'{_PROJECTION}/bias'
  hf_output.check_params(
    tree_paths.unflatten(projection),
    {kernel: (width, embed), bias: (embed,)},
    'PaliConfig',
  )

  def tensor(path, shape):
    return safetensors_output.Tensor(
      shape, output.DTYPES[dtype], lambda: fetch(path, projection[path]).T
    )

  shapes = _shapes(config)
  parts = hf_output.contents(
    params,
    _t5_config(config),
    vocabulary=vocabulary,
    dtype=dtype,
    model_type=model_type,
    fetch=fetch,
  ).inside(T5) | siglip_output.contents(
    vit,
    config.vit,
    dtype=dtype,
    fetch=lambda path, leaf: fetch(f'{_VIT}/{path}', leaf),
  ).inside(SIGLIP)
  return parts | output.Contents(
    {readmes.FILE: readmes.pali(config)},
    {
      PROJECTION: {
        'weight': tensor(kernel, shapes['weight']),
        'bias': tensor(bias, shapes['bias']),
      }
    },
  )


def _t5_config(config: pali_config.PaliConfig) -> t5_config.T5Config:
  """Returns the configuration of the T5 without the ViT."""
  return t5_config.T5Config(
    **{
      field.name: getattr(config, field.name)
      for field in dataclasses.fields(t5_config.T5Config)
    }
  )


def _shapes(config: pali_config.PaliConfig) -> dict[str, tuple[int, ...]]:
  return {
    'weight': (config.emb_dim, config.vit.width),
    'bias': (config.emb_dim,),
  }
