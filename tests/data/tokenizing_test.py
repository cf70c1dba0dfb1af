import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import seqio

from perlhf_jax.data import seqio_vocabularies
from perlhf_jax.data import tokenizing
from perlhf_jax.data import vocabularies

TEXTS = [
  '',
  'a',
  ' two  words ',
  'line\nline',
  'é€😀',
  '\x00\xad',
  '<extra_id_0>',
]


@pytest.fixture(scope='module')
def spm():
  path = seqio.__path__[0] + '/test_data/sentencepiece/sentencepiece.model'
  return seqio_vocabularies.SentencePieceVocabulary(path, extra_ids=10)


def one_by_one(vocabulary, texts):
  return [[*vocabulary.encode(text), 1] for text in texts]


def as_lists(arrays):
  assert all(array.dtype == np.int32 for array in arrays)
  return [array.tolist() for array in arrays]


@hypothesis.given(
  texts=st.lists(st.text(st.characters(exclude_categories=['Cs'])))
)
@hypothesis.example(texts=TEXTS)
def test_many_texts_have_the_tokens_of_each(spm, texts):
  for vocabulary in (spm, vocabularies.byte_vocabulary(5)):
    encoded = tokenizing.encode_all(vocabulary, texts)
    assert as_lists(encoded) == one_by_one(vocabulary, texts)


def test_a_vocabulary_of_ones_own_is_asked():
  class Shouting(seqio.ByteVocabulary):
    def _encode(self, s):
      return super()._encode(s.upper())

  encoded = tokenizing.encode_all(Shouting(), ['ab', ''])
  assert as_lists(encoded) == [[68, 69, 1], [1]]


def test_another_eos_than_t5s_is_replaced(spm, monkeypatch):
  # Such as BERT's; the batch call of SentencePiece would put its own.
  monkeypatch.setattr(type(spm), 'eos_id', property(lambda self: 7))
  encoded = tokenizing.encode_all(spm, ['a b'])
  assert as_lists(encoded) == one_by_one(spm, ['a b'])
