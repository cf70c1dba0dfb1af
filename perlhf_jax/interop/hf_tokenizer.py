"""The files from which `transformers` makes the tokenizer of a vocabulary."""

import base64
from collections.abc import Mapping
import json
from typing import Any

from perlhf_jax.core import errors

_SPECIAL = {'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>'}
_CLASSES = {'byte': 'ByT5Tokenizer', 'sentencepiece': 'T5Tokenizer'}


def files(vocabulary: Mapping[str, Any]) -> dict[str, str | bytes]:
  """Returns each file's content by its name.

  Args:
    vocabulary: of `data.vocabularies.to_dict`.

  Raises:
    CheckpointError: a kind of vocabulary that `transformers` does not have.
  """
  kind, extra_ids = vocabulary['kind'], vocabulary['extra_ids']
  if kind not in _CLASSES:
    raise errors.CheckpointError(
      f'A vocabulary of the kind {kind!r} has no tokenizer of transformers; '
      f'{" and ".join(_CLASSES)} have.'
    )
  config = {
    **_SPECIAL,
    'additional_special_tokens': [
      f'<extra_id_{number}>' for number in range(extra_ids)
    ],
    'extra_ids': extra_ids,
    'tokenizer_class': _CLASSES[kind],
  }
  text = json.dumps(config, indent=2, sort_keys=True) + '\n'
  found: dict[str, str | bytes] = {'tokenizer_config.json': text}
  if kind == 'sentencepiece':
    found['spiece.model'] = base64.b64decode(vocabulary['model_base64'])
  return found
