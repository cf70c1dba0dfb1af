"""Byte and SentencePiece vocabularies, from files, checkpoints and HF.

All are SeqIO vocabularies with pad id 0 and EOS id 1. A task yields text, which
the run's vocabulary tokenises, so that one task serves every model. Checkpoints
contain the vocabulary (`to_dict`).
"""

import base64
import binascii
import dataclasses
import hashlib
import os
from typing import Annotated, Any

from etils import epy

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import schemas
from perlhf_jax.core import strict_json

# Imported when the first vocabulary is made: the imports take seconds, and
# machines that read no text do not need these packages.
with epy.lazy_imports():
  import seqio
  import tensorflow as tf

  from perlhf_jax.data import seqio_vocabularies

PAD_ID = 0
EOS_ID = 1

# Sentinels of the span-corruption objective, which every T5 model has.
_T5_EXTRA_IDS = 100
_BYT5_EXTRA_IDS = 125

_ExtraIds = Annotated[int, checks.Range(least=0, most=65_536)]


@dataclasses.dataclass(frozen=True)
class _TokenizerFile:
  """The fields of a `tokenizer_config.json` that are read."""

  tokenizer_class: str | None = None
  extra_ids: _ExtraIds | None = None


@dataclasses.dataclass(frozen=True)
class _Description:
  """The fields of the result of `to_dict`."""

  kind: Annotated[str, checks.OneOf('byte', 'sentencepiece')]
  extra_ids: _ExtraIds
  model_base64: str | None = None


def byte_vocabulary(extra_ids: int = 0) -> 'seqio.ByteVocabulary':
  """Returns the vocabulary of UTF-8 bytes + 3; ByT5 has 125 extra ids."""
  return seqio_vocabularies.ByteVocabulary(extra_ids=extra_ids)


def sentencepiece_vocabulary(
  path: str, extra_ids: int = 0
) -> 'seqio.SentencePieceVocabulary':
  """Returns the vocabulary of a SentencePiece model file.

  Args:
    path: the model file, local or `gs://`, such as `spiece.model` or
      `sentencepiece.model`.
    extra_ids: number of sentinel ids to add at the end (100 for the released T5
      models, 0 if the file already has them, as mT5's does).

  Raises:
    ConfigError: the file does not exist, is too large, or is not a
      SentencePiece model with pad id 0 and EOS id 1.
  """
  if not tf.io.gfile.exists(path):
    raise errors.ConfigError(
      f'There is no SentencePiece model at {path!r}. Give the path of a'
      ' spiece.model (a Hugging Face T5 directory has one) or use'
      ' byte_vocabulary, which needs no file.'
    )
  plain_files.check(path, errors.ConfigError, plain_files.MAX_TEXT_BYTES)
  return _loaded(path, extra_ids, repr(path))


def _loaded(
  path: str, extra_ids: int, what: str
) -> 'seqio.SentencePieceVocabulary':
  """Makes a vocabulary from a model file, and checks the file.

  Args:
    path: path of the file.
    extra_ids: as in `sentencepiece_vocabulary`.
    what: name of the file in messages.

  Raises:
    ConfigError: as in `sentencepiece_vocabulary`.
  """
  vocabulary = seqio_vocabularies.SentencePieceVocabulary(
    path, extra_ids=extra_ids
  )
  try:
    ids = vocabulary.tokenizer.pad_id(), vocabulary.eos_id
  # The parser of the model file has its own exception class.
  except Exception as error:
    raise errors.ConfigError(
      f'{what} cannot be read as a SentencePiece model ({error}). Check that'
      ' the file is complete; a Git LFS pointer is not the model itself.'
    ) from error
  if ids != (PAD_ID, EOS_ID):
    raise errors.ConfigError(
      f'The SentencePiece model {what} has (pad, EOS) ids {ids}, but T5'
      f' models need {(PAD_ID, EOS_ID)}. Train it with --pad_id=0 --eos_id=1'
      ' --unk_id=2.'
    )
  return vocabulary


def load_from_hf_directory(path: str) -> 'seqio.Vocabulary':
  """Returns the vocabulary of a Hugging Face T5, mT5, UMT5 or ByT5 directory.

  It reads `spiece.model` and the number of extra ids in `tokenizer_config.json`
  (100 if absent). ByT5 has no model file; for it, only `tokenizer_config.json`
  is read.

  Raises:
    ConfigError: the directory has neither file, or a damaged one.
  """
  config_path = os.path.join(path, 'tokenizer_config.json')
  config = _TokenizerFile()
  if tf.io.gfile.exists(config_path):
    try:
      raw = strict_json.loads(plain_files.read(config_path, errors.ConfigError))
    except (OSError, ValueError) as error:
      raise errors.ConfigError(
        f'{config_path} is not valid JSON ({error}). Copy it again.'
      ) from error
    config = schemas.make(
      _TokenizerFile,
      raw,
      config_path,
      error=errors.ConfigError,
      remedy='Copy it again.',
    )

  def extra_ids(default):
    return default if config.extra_ids is None else config.extra_ids

  if (config.tokenizer_class or '').startswith('ByT5'):
    return byte_vocabulary(extra_ids(_BYT5_EXTRA_IDS))
  model_path = os.path.join(path, 'spiece.model')
  if tf.io.gfile.exists(model_path):
    return sentencepiece_vocabulary(model_path, extra_ids(_T5_EXTRA_IDS))
  raise errors.ConfigError(
    f'{path!r} has no vocabulary: neither spiece.model (T5, mT5, UMT5) nor a'
    ' tokenizer_config.json of ByT5. Copy the missing file from the model that'
    ' the weights came from.'
  )


def to_dict(vocabulary: Any) -> dict[str, Any]:
  """Returns everything needed to rebuild a vocabulary, as JSON values.

  Raises:
    ConfigError: it is neither a byte nor a SentencePiece vocabulary.
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


def from_dict(fields: Any) -> 'seqio.Vocabulary':
  """Rebuilds a vocabulary from `to_dict`; the two compare equal.

  Raises:
    ConfigError: the description is damaged or of an unknown kind.
  """
  described = schemas.make(
    _Description,
    fields,
    'the vocabulary',
    error=errors.ConfigError,
    remedy='A newer version may have written it, or it is damaged.',
  )
  if described.kind == 'byte':
    return byte_vocabulary(described.extra_ids)
  try:
    model = base64.b64decode(described.model_base64 or '', validate=True)
  except (binascii.Error, ValueError) as error:
    raise errors.ConfigError(
      f'The SentencePiece model of the vocabulary is not in base64 ({error}).'
    ) from error
  # SeqIO reads models only from files, so this file is in TensorFlow's memory.
  # SeqIO caches models by name, so the name is a hash of the content. Writing
  # to an existing `ram://` file would append to it.
  path = f'ram://perlhf_jax/{hashlib.sha256(model).hexdigest()}.model'
  if not tf.io.gfile.exists(path):
    with tf.io.gfile.GFile(path, 'wb') as file:
      file.write(model)
  return _loaded(path, described.extra_ids, 'of the vocabulary')
