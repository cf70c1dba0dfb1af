"""Reads and writes the head of a reward model, beside its T5 or adapters.

`reward_head.safetensors` holds `weight` `[1, embed]` and `bias` `[1]`, as in a
`torch.nn.Linear(embed, 1)`. `transformers` has no model with such a head: its
`T5ForSequenceClassification` gives prompt and response to both stacks.
"""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath
import numpy as np

from perlhf_jax.interop import hf_output
from perlhf_jax.interop import named_tensors
from perlhf_jax.interop import output
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import safetensors_output
from perlhf_jax.models import t5_config

FILE = 'reward_head.safetensors'
_KERNEL, _BIAS = 'score/kernel', 'score/bias'


def contents(
  heads: Mapping[str, Any],
  config: t5_config.T5Config,
  fetch: output.Fetch = output.as_numpy,
) -> output.Contents:
  """Describes the head's file.

  Args:
    heads: `{'score': {'kernel': [embed, 1], 'bias': [1]}}`.
    config: configuration of the backbone.
    fetch: called with a path such as 'heads/score/kernel' and its leaf; returns
      an array in this host's memory.

  Raises:
    CheckpointError: `heads` has other names or shapes.
  """
  flat = hf_output.check_params(
    heads, {_KERNEL: (config.emb_dim, 1), _BIAS: (1,)}, 'T5Config'
  )

  def make(path):
    return lambda: fetch(f'heads/{path}', flat[path]).T

  shapes = _shapes(config)
  return output.Contents(
    {},
    {
      FILE: {
        'weight': safetensors_output.Tensor(
          shapes['weight'], np.float32, make(_KERNEL)
        ),
        'bias': safetensors_output.Tensor(
          shapes['bias'], np.float32, make(_BIAS)
        ),
      }
    },
  )


def is_there(path: str | os.PathLike[str]) -> bool:
  """Whether a directory, local or remote, holds a head.

  Raises:
    CheckpointError: a remote directory cannot be reached.
  """
  with remote_files.explained(path):
    return (epath.Path(path) / FILE).exists()


def load(
  path: str | os.PathLike[str], config: t5_config.T5Config
) -> dict[str, Any]:
  """Reads the head.

  Args:
    path: path of the directory, local or remote.
    config: configuration of the backbone.

  Returns:
    `{'score': {'kernel': [embed, 1], 'bias': [1]}}` in float32.

  Raises:
    CheckpointError: the file is missing, damaged or from another model.
  """
  tensors = named_tensors.read(
    path,
    FILE,
    _shapes(config),
    source='T5Config',
    whole='reward model',
  )
  return {
    'score': {
      'kernel': np.ascontiguousarray(tensors['weight'].T),
      'bias': tensors['bias'],
    }
  }


def _shapes(config: t5_config.T5Config) -> dict[str, tuple[int, ...]]:
  return {'weight': (1, config.emb_dim), 'bias': (1,)}
