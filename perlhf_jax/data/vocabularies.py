"""Vocabularies: bytes and SentencePiece, from files, checkpoints and HF.

All of them are SeqIO vocabularies with pad id 0 and EOS id 1. A task yields
text and the run's vocabulary turns it into tokens, so that one task serves
every model; the vocabulary travels inside the checkpoint (`to_dict`).
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

_ExtraIds = Annotated[int, checks.Range(least=0, most=65_536)]


@dataclasses.dataclass(frozen=True)
class _TokenizerFile:
  """What is read of a `tokenizer_config.json`."""

  tokenizer_class: str | None = None
  extra_ids: _ExtraIds | None = None


@dataclasses.dataclass(frozen=True)
class _Description:
  """What `to_dict` returns."""

  kind: Annotated[str, checks.OneOf('byte', 'sentencepiece')]
  extra_ids: _ExtraIds
  model_base64: str | None = None


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
    ConfigError: there is no such file, it is too large, or it is not a
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
  """Makes a vocabulary of a model file, and makes sure that it is one.

  Args:
    path: of the file.
    extra_ids: as of `sentencepiece_vocabulary`.
    what: what messages call the file.

  Raises:
    ConfigError: as of `sentencepiece_vocabulary`.
  """
  vocabulary = seqio_vocabularies.SentencePieceVocabulary(
    path, extra_ids=extra_ids
  )
  try:
    ids = vocabulary.tokenizer.pad_id(), vocabulary.eos_id
  # The parser of the model file has an exception class of its own.
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
  """The vocabulary of a Hugging Face T5, mT5, UMT5 or ByT5 directory.

  Reads `spiece.model`, with the number of extra ids in
  `tokenizer_config.json` (100 if that does not say), or, for ByT5, which has
  no model file, `tokenizer_config.json` alone.

  Raises:
    ConfigError: the directory has neither, or one that is damaged.
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


def from_dict(fields: Any) -> 'seqio.Vocabulary':
  """Rebuilds what `to_dict` described; the two compare equal.

  Raises:
    ConfigError: the description is of no kind known here, or damaged.
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
  # SeqIO reads models from files only; this one lives in memory, and its
  # name is its content because SeqIO caches models by name. Writing to a
  # file that is there would append to it, in TensorFlow's memory.
  path = f'ram://perlhf_jax/{hashlib.sha256(model).hexdigest()}.model'
  if not tf.io.gfile.exists(path):
    with tf.io.gfile.GFile(path, 'wb') as file:
      file.write(model)
  return _loaded(path, described.extra_ids, 'of the vocabulary')
