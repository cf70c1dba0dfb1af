"""Describes the directory of a reward model: T5 or PaLI, head, and README.

The backbone is read like any T5 or PaLI directory, the head by
`reward_head.load`.
"""

from collections.abc import Mapping
from typing import Any

from perlhf_jax.core import typing
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import output
from perlhf_jax.interop import pali_directory
from perlhf_jax.interop import readmes
from perlhf_jax.interop import reward_head
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config


def contents(
  params: typing.Params,
  heads: Mapping[str, Any],
  config: t5_config.T5Config,
  *,
  vocabulary: Mapping[str, Any],
  dtype: str = 'float32',
  model_type: str | None = None,
  fetch: output.Fetch = output.as_numpy,
) -> output.Contents:
  """Describes the directory; arguments as in `hf_output.contents`.

  Args:
    params: parameters of the backbone, with adapters merged.
    heads: `{'score': {'kernel': [embed, 1], 'bias': [1]}}`, written in float32.
    config: configuration of the backbone.
    vocabulary: vocabulary from `data.vocabularies.to_dict`.
    dtype: dtype of the backbone.
    model_type: type of the T5.
    fetch: called with a path and its leaf; returns an array in this host's
      memory.

  Raises:
    CheckpointError: the architecture has no Hugging Face counterpart, or
      `params` or `heads` do not match `config`.
  """
  is_pali = isinstance(config, pali_config.PaliConfig)
  backbone = (pali_directory if is_pali else hf_output).contents(
    params,
    config,
    vocabulary=vocabulary,
    dtype=dtype,
    model_type=model_type,
    fetch=fetch,
  )
  readme = (
    readmes.pali(config, reward=True)
    if is_pali
    else readmes.reward(config, adapter=False)
  )
  return (
    backbone
    | reward_head.contents(heads, config, fetch)
    | output.Contents({readmes.FILE: readme}, {})
  )
