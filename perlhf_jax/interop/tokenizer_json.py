"""Converts a SentencePiece model to a `tokenizer.json` of `tokenizers`.

transformers 4 and 5 read it without SentencePiece. It gives the same tokens as
the model, except for texts that spell out a special token.

`T5Tokenizer` of transformers 5 uses its pieces and scores, but not its rules:
it splits text at white space and does not fall back to bytes, which suits the
published vocabularies. A model with pieces for bytes, line breaks or runs of
spaces, such as those of `perlhf train_vocabulary`, needs
`PreTrainedTokenizerFast`, which follows the rules.
"""

import base64
import json
import re
from typing import Any

from etils import epy

from perlhf_jax.core import errors

with epy.lazy_imports():
  from sentencepiece import sentencepiece_model_pb2

_UNIGRAM = 1
_USER_DEFINED = 4
_SPACE = '▁'
_EOS = '</s>'


def is_usual(model: bytes) -> bool:
  """Whether `T5Tokenizer` of transformers 5 gives the same tokens as a model.

  Args:
    model: a SentencePiece model.
  """
  proto = _parse(model)
  return (
    proto.normalizer_spec.remove_extra_whitespaces
    and not proto.trainer_spec.byte_fallback
    and not _own_pieces(proto)
  )


def make(model: bytes, extra_ids: int) -> str:
  """Returns the file's text.

  Args:
    model: a SentencePiece model with pad id 0, EOS id 1 and unknown id 2.
    extra_ids: number of sentinels after the model's pieces.

  Raises:
    CheckpointError: the model is not a unigram model.
  """
  proto = _parse(model)
  if proto.trainer_spec.model_type != _UNIGRAM:
    raise errors.CheckpointError(
      'The SentencePiece model of the vocabulary is not a unigram model, so '
      'that no T5 tokenizer of transformers reads it. Train one with '
      'model_type unigram, which is the default.'
    )
  vocab = [[piece.piece, piece.score] for piece in proto.pieces]
  special = {index: vocab[index][0] for index in range(3)}
  for number in reversed(range(extra_ids)):
    special[len(vocab)] = f'<extra_id_{number}>'
    vocab.append([f'<extra_id_{number}>', 0.0])
  rules = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      {
        'id': index,
        'content': content,
        'single_word': False,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
        'special': True,
      }
      for index, content in special.items()
    ],
    'normalizer': _sequence('normalizers', _normalizers(proto.normalizer_spec)),
    'pre_tokenizer': _isolated(_own_pieces(proto)),
    'post_processor': _with_eos(),
    'decoder': _sequence(
      'decoders',
      [
        _replace({'String': _SPACE}, ' '),
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
        {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
      ],
    ),
    'model': {
      'type': 'Unigram',
      'unk_id': 2,
      'vocab': vocab,
      'byte_fallback': proto.trainer_spec.byte_fallback,
    },
  }
  return json.dumps(rules, ensure_ascii=False, indent=1) + '\n'


def _parse(model: bytes) -> Any:
  return sentencepiece_model_pb2.ModelProto.FromString(model)


def _own_pieces(proto: Any) -> list[str]:
  """Returns the user-defined pieces, except sentinels."""
  return [
    piece.piece
    for piece in proto.pieces
    if piece.type == _USER_DEFINED and 'extra_id' not in piece.piece
  ]


def _sequence(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
  return {'type': 'Sequence', name: parts}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
  return {'type': 'Replace', 'pattern': pattern, 'content': content}


def _normalizers(spec: Any) -> list[dict[str, Any]]:
  """Returns SentencePiece's normalizers, in its order."""
  parts: list[dict[str, Any]] = []
  if spec.precompiled_charsmap:
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode('ascii')
    parts.append({'type': 'Precompiled', 'precompiled_charsmap': charsmap})
  if spec.remove_extra_whitespaces:
    parts.append(_replace({'Regex': r'\A +| +\z'}, ''))
    parts.append(_replace({'Regex': ' {2,}'}, ' '))
  if spec.add_dummy_prefix:
    parts.append({'type': 'Prepend', 'prepend': _SPACE})
  parts.append(_replace({'String': ' '}, _SPACE))
  return parts


def _isolated(pieces: list[str]) -> dict[str, Any] | None:
  """Keeps pieces whole, as SentencePiece does with user-defined pieces."""
  if not pieces:
    return None
  longest_first = sorted(pieces, key=len, reverse=True)
  return {
    'type': 'Split',
    'pattern': {'Regex': '|'.join(map(re.escape, longest_first))},
    'behavior': 'Isolated',
    'invert': False,
  }


def _with_eos() -> dict[str, Any]:
  eos = {'SpecialToken': {'id': _EOS, 'type_id': 0}}
  first, second = (
    {'Sequence': {'id': name, 'type_id': 0}} for name in ('A', 'B')
  )
  return {
    'type': 'TemplateProcessing',
    'single': [first, eos],
    'pair': [first, eos, second, eos],
    'special_tokens': {_EOS: {'id': _EOS, 'ids': [1], 'tokens': [_EOS]}},
  }
