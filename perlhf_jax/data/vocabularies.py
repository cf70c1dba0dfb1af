"""Vocabularies: bytes and SentencePiece, from files, checkpoints and HF.

All of them are SeqIO vocabularies with pad id 0 and EOS id 1. A task yields
text and the run's vocabulary turns it into tokens, so that one task serves
every model; the vocabulary travels inside the checkpoint (`to_dict`).
"""

import base64
from collections.abc import Mapping
import hashlib
import json
import os
from typing import Any

from etils import epy

from perlhf_jax.core import errors

# Imported when the first vocabulary is made: they take seconds, and a machine
# that reads no text need not have them.
with epy.lazy_imports():
  import seqio
  import tensorflow as tf

  from perlhf_jax.data import seqio_vocabularies

PAD_ID = 0
EOS_ID = 1

# Sentinels of the span-corruption objective: they belong to every T5 model.
_T5_EXTRA_IDS = 100
_BYT5_EXTRA_IDS = 125


def byte_vocabulary(extra_ids: int = 0) -> 'seqio.ByteVocabulary':
  """UTF-8 bytes, shifted by the three special ids; ByT5 has 125 extra ids."""
  return seqio_vocabularies.ByteVocabulary(extra_ids=extra_ids)


def sentencepiece_vocabulary(
  path: str, extra_ids: int = 0
) -> 'seqio.SentencePieceVocabulary':
  """A SentencePiece model file, local or `gs://`.

  Args:
    path: the model file, such as `spiece.model` or `sentencepiece.model`.
    extra_ids: sentinel ids to add at the end (100 for the released T5 models,
      0 if the file already has them, as in mT5's).

  Raises:
    ConfigError: there is no such file, or it is not a SentencePiece model
      with pad id 0 and EOS id 1.
  """
  if not tf.io.gfile.exists(path):
    raise errors.ConfigError(
      f'There is no SentencePiece model at {path!r}. Give the path of a'
      ' spiece.model (a Hugging Face T5 directory has one) or use'
      ' byte_vocabulary, which needs no file.'
    )
  vocabulary = seqio_vocabularies.SentencePieceVocabulary(
    path, extra_ids=extra_ids
  )
  try:
    ids = vocabulary.tokenizer.pad_id(), vocabulary.eos_id
  # The parser of the model file has an exception class of its own.
  except Exception as error:
    raise errors.ConfigError(
      f'{path!r} cannot be read as a SentencePiece model ({error}). Check that'
      ' the file is complete; a Git LFS pointer is not the model itself.'
    ) from error
  if ids != (PAD_ID, EOS_ID):
    raise errors.ConfigError(
      f'The SentencePiece model {path!r} has (pad, EOS) ids {ids}, but T5'
      f' models need {(PAD_ID, EOS_ID)}. Train it with --pad_id=0 --eos_id=1'
      ' --unk_id=2.'
    )
  return vocabulary


def load_from_hf_directory(path: str) -> 'seqio.Vocabulary':
  """The vocabulary of a Hugging Face T5, mT5, UMT5 or ByT5 directory.

  Reads `spiece.model`, with the number of extra ids in
  `tokenizer_config.json` (100 if that does not say), or, for ByT5, which has
  no model file, `tokenizer_config.json` alone.

  Raises:
    ConfigError: the directory has neither.
  """
  config_path = os.path.join(path, 'tokenizer_config.json')
  config = {}
  if tf.io.gfile.exists(config_path):
    with tf.io.gfile.GFile(config_path) as file:
      try:
        config = json.load(file)
      except json.JSONDecodeError as error:
        raise errors.ConfigError(
          f'{config_path} is not valid JSON ({error}). Copy it again.'
        ) from error
  tokenizer_class = config.get('tokenizer_class') or ''
  if tokenizer_class.startswith('ByT5'):
    return byte_vocabulary(config.get('extra_ids', _BYT5_EXTRA_IDS))
  model_path = os.path.join(path, 'spiece.model')
  if tf.io.gfile.exists(model_path):
    return sentencepiece_vocabulary(
      model_path, config.get('extra_ids', _T5_EXTRA_IDS)
    )
  raise errors.ConfigError(
    f'{path!r} has no vocabulary: neither spiece.model (T5, mT5, UMT5) nor a'
    ' tokenizer_config.json of ByT5. Copy the missing file from the model that'
    ' the weights came from.'
  )


def to_dict(vocabulary: Any) -> dict[str, Any]:
  """Everything needed to rebuild a vocabulary, as JSON values.

  Raises:
    ConfigError: neither a byte nor a SentencePiece vocabulary.
  """
  if isinstance(vocabulary, seqio.ByteVocabulary):
    return {'kind': 'byte', 'extra_ids': vocabulary.extra_ids}
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    with tf.io.gfile.GFile(vocabulary.sentencepiece_model_file, 'rb') as file:
      model = file.read()
    return {
      'kind': 'sentencepiece',
      'extra_ids': vocabulary.extra_ids,
      'model_base64': base64.b64encode(model).decode('ascii'),
    }
  raise errors.ConfigError(
    f'A vocabulary of type {type(vocabulary).__name__} cannot be stored in a'
    ' checkpoint. Use byte_vocabulary or sentencepiece_vocabulary.'
  )


def from_dict(fields: Mapping[str, Any]) -> 'seqio.Vocabulary':
  """Rebuilds what `to_dict` described; the two compare equal.

  Raises:
    ConfigError: the description is of no kind known here.
  """
  kind = fields.get('kind')
  if kind == 'byte':
    return byte_vocabulary(fields['extra_ids'])
  if kind == 'sentencepiece':
    model = base64.b64decode(fields['model_base64'])
    # SeqIO reads models from files only; this one lives in memory, and its
    # name is its content because SeqIO caches models by name. Writing to a
    # file that is there would append to it, in TensorFlow's memory.
    path = f'ram://perlhf_jax/{hashlib.sha256(model).hexdigest()}.model'
    if not tf.io.gfile.exists(path):
      with tf.io.gfile.GFile(path, 'wb') as file:
        file.write(model)
    return seqio_vocabularies.SentencePieceVocabulary(
      path, extra_ids=fields['extra_ids']
    )
  raise errors.ConfigError(
    f'Unknown vocabulary kind {kind!r}; known are byte and sentencepiece. The'
    ' checkpoint was probably written by a newer version.'
  )
