"""Tokenises many texts at once, as fast as the vocabulary allows."""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np
import seqio

from perlhf_jax.data import feature_converters

# A byte that no UTF-8 text contains; marks the place of EOS.
_END = b'\xff'
_SPECIAL_IDS = 3  # Special ids of a byte vocabulary: pad, EOS and unk.
_PROCESSORS = (
  len(os.sched_getaffinity(0))
  if hasattr(os, 'sched_getaffinity')
  else os.cpu_count() or 1
)


def encode_all(
  vocabulary: feature_converters.TextVocabulary, texts: Sequence[str]
) -> list[np.ndarray]:
  """Returns the tokens of texts, each int32 `[length]` with EOS at its end.

  SentencePiece uses all processors, and does not block other threads.

  Args:
    vocabulary: any vocabulary; those other than byte and SentencePiece
      vocabularies are called once per text.
    texts: valid Unicode.
  """
  if _encodes_as(vocabulary, seqio.ByteVocabulary):
    return [_encode_bytes(text) for text in texts]
  if (
    _encodes_as(vocabulary, seqio.SentencePieceVocabulary)
    and vocabulary.eos_id == feature_converters.EOS_ID
  ):
    return vocabulary.tokenizer.Encode(
      list(texts), return_type='numpy', add_eos=True, num_threads=_PROCESSORS
    )
  return [feature_converters.tokenize(vocabulary, text) for text in texts]


def _encodes_as(vocabulary: Any, kind: type[seqio.Vocabulary]) -> bool:
  """Whether a vocabulary encodes with the methods of the SeqIO class `kind`."""
  theirs = type(vocabulary)
  return (
    isinstance(vocabulary, kind)
    and theirs.encode is kind.encode
    and theirs._encode is kind._encode
  )


def _encode_bytes(text: str) -> np.ndarray:
  tokens = np.frombuffer(text.encode() + _END, np.uint8) + np.int32(
    _SPECIAL_IDS
  )
  tokens[-1] = feature_converters.EOS_ID
  return tokens
