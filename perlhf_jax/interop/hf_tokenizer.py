"""Makes the tokenizer files of a vocabulary for `transformers`."""

import base64
from collections.abc import Mapping
import json
from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.interop import tokenizer_json

_SPECIAL = {'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>'}


def files(vocabulary: Mapping[str, Any]) -> dict[str, str | bytes]:
  """Returns the content of each file, by name.

  Args:
    vocabulary: vocabulary from `data.vocabularies.to_dict`.

  Raises:
    CheckpointError: `transformers` has no such kind of vocabulary.
  """
  kind, extra_ids = vocabulary['kind'], vocabulary['extra_ids']
  config = {
    **_SPECIAL,
    'additional_special_tokens': [
      f'<extra_id_{number}>' for number in range(extra_ids)
    ],
    'extra_ids': extra_ids,
  }
  if kind == 'byte':
    return _with_config({}, config, 'ByT5Tokenizer')
  if kind != 'sentencepiece':
    raise errors.CheckpointError(
      f'transformers has no tokenizer for a vocabulary of the kind {kind!r}, '
      'only for byte and sentencepiece.'
    )
  model = base64.b64decode(vocabulary['model_base64'])
  name = 'PreTrainedTokenizerFast'
  if tokenizer_json.is_usual(model):
    name = 'T5Tokenizer'
  return _with_config(
    {
      'spiece.model': model,
      'tokenizer.json': tokenizer_json.make(model, extra_ids),
    },
    config,
    name,
  )


def _with_config(
  found: dict[str, str | bytes], config: Mapping[str, Any], name: str
) -> dict[str, str | bytes]:
  text = json.dumps(
    {**config, 'tokenizer_class': name}, indent=2, sort_keys=True
  )
  return {**found, 'tokenizer_config.json': text + '\n'}
