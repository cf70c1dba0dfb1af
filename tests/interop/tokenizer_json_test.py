"""The rules in a tokenizer.json, obeyed by an interpreter of our own.

That `tokenizers` itself obeys them so is for tests/oracles.
"""

import base64
import json
import re

import pytest
import sentencepiece
import tiny_pieces

from perlhf_jax.core import errors
from perlhf_jax.interop import hf_tokenizer
from perlhf_jax.interop import tokenizer_json

TEXTS = (
  'the quick brown fox jumps over the lazy dog',
  'one\ntwo  three\n\nfour ',
  ' a leading space',
  'dogs, foxes: café ☕!',
  '',
  '\n',
)
OWN = {
  'byte_fallback': True,
  'normalization_rule_name': 'identity',
  'remove_extra_whitespaces': False,
  'user_defined_symbols': ['\n'],
}


def _train(**options):
  return tiny_pieces.train(TEXTS[:3] * 5, 330, **options)


def _normalized(text, rules):
  for rule in rules['normalizer']['normalizers']:
    match rule:
      case {'type': 'Prepend', 'prepend': prefix}:
        text = prefix + text if text else text
      case {'type': 'Replace', 'pattern': {'String': old}, 'content': new}:
        text = text.replace(old, new)
      case {'type': 'Replace', 'pattern': {'Regex': old}, 'content': new}:
        text = re.sub(old.replace(r'\z', r'\Z'), new, text)
      case _:
        raise AssertionError(rule)
  return text


def _best(text, vocab):
  """The segmentation of the highest score; what is no piece becomes bytes."""
  ids = {piece: (index, score) for index, (piece, score) in enumerate(vocab)}
  worst = min(score for _, score in vocab) - 10
  best = [(0.0, [])] + [None] * len(text)
  for end in range(1, len(text) + 1):
    for start in range(end):
      if text[start:end] in ids:
        index, score = ids[text[start:end]]
        found = [index]
      elif end - start == 1:
        score = worst
        found = [ids[f'<0x{x:02X}>'][0] for x in text[start:end].encode()]
      else:
        continue
      score += best[start][0]
      if best[end] is None or score > best[end][0]:
        best[end] = score, best[start][1] + found
  return best[-1][1]


def _encode(text, rules):
  text = _normalized(text, rules)
  split = rules['pre_tokenizer']['pattern']['Regex']
  parts = filter(None, re.split(f'({split})', text))
  ids = [i for part in parts for i in _best(part, rules['model']['vocab'])]
  (eos,) = rules['post_processor']['special_tokens']['</s>']['ids']
  return [*ids, eos]


def test_ids_are_those_of_sentencepiece():
  model = _train(**OWN)
  rules = json.loads(tokenizer_json.make(model, 0))
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  for text in TEXTS:
    assert _encode(text, rules) == [*processor.encode(text), 1], text
  assert rules['model']['byte_fallback'] and rules['model']['unk_id'] == 2


def test_extra_spaces_are_removed_where_the_model_does():
  model = _train(**OWN | {'remove_extra_whitespaces': True})
  rules = json.loads(tokenizer_json.make(model, 0))
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  for text in ('  one  two   ', 'the lazy  dog'):
    assert _encode(text, rules) == [*processor.encode(text), 1], text


def test_sentinels_stand_behind_the_pieces_in_reverse():
  rules = json.loads(tokenizer_json.make(_train(**OWN), 3))
  tail = [piece for piece, _ in rules['model']['vocab'][-3:]]
  assert tail == ['<extra_id_2>', '<extra_id_1>', '<extra_id_0>']
  size = len(rules['model']['vocab'])
  added = {token['content']: token['id'] for token in rules['added_tokens']}
  assert added == {
    '<pad>': 0,
    '</s>': 1,
    '<unk>': 2,
    '<extra_id_2>': size - 3,
    '<extra_id_1>': size - 2,
    '<extra_id_0>': size - 1,
  }


@pytest.mark.parametrize(
  ('options', 'name'),
  [
    ({}, 'T5Tokenizer'),
    ({'user_defined_symbols': ['<extra_id_0>']}, 'T5Tokenizer'),
    *(
      ({key: value}, 'PreTrainedTokenizerFast')
      for key, value in OWN.items()
      if key != 'normalization_rule_name'
    ),
  ],
)
def test_which_tokenizer_gives_the_tokens_of_the_model(options, name):
  vocabulary = {
    'kind': 'sentencepiece',
    'extra_ids': 2,
    'model_base64': base64.b64encode(_train(**options)).decode(),
  }
  files = hf_tokenizer.files(vocabulary)
  assert sorted(files) == [
    'spiece.model',
    'tokenizer.json',
    'tokenizer_config.json',
  ]
  config = json.loads(files['tokenizer_config.json'])
  assert config['tokenizer_class'] == name
  assert config['additional_special_tokens'] == ['<extra_id_0>', '<extra_id_1>']


def test_a_model_of_merges_is_refused():
  with pytest.raises(errors.CheckpointError, match='not a unigram model'):
    tokenizer_json.make(_train(model_type='bpe'), 0)
