import copy
import json

import pytest
import seqio
import tiny_pieces

from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies


def train_model(path, pad_id=0, eos_id=1):
  text = ['the cat sat on the mat', 'a dog ran to the cat', 'who ran where']
  ids = {'pad_id': pad_id, 'eos_id': eos_id}
  path.write_bytes(tiny_pieces.train(text * 20, 40, **ids))
  return str(path)


@pytest.fixture(scope='module')
def model_path(tmp_path_factory):
  return train_model(tmp_path_factory.mktemp('spm') / 'spiece.model')


def test_bytes_are_shifted_by_three_special_ids():
  vocabulary = vocabularies.byte_vocabulary(extra_ids=5)
  assert vocabulary.encode('aé') == [97 + 3, 0xC3 + 3, 0xA9 + 3]
  assert vocabulary.decode([100, 198, 172]) == 'aé'
  assert vocabulary.vocab_size == 256 + 3 + 5


@pytest.mark.parametrize('extra_ids', [0, 7])
def test_byte_vocabulary_survives_json(extra_ids):
  vocabulary = vocabularies.byte_vocabulary(extra_ids)
  fields = json.loads(json.dumps(vocabularies.to_dict(vocabulary)))
  assert vocabularies.from_dict(fields) == vocabulary
  assert vocabularies.from_dict(fields) != vocabularies.byte_vocabulary(1)


@pytest.mark.parametrize('extra_ids', [0, 10])
def test_sentencepiece_vocabulary_survives_json(
  model_path, tmp_path, extra_ids
):
  vocabulary = vocabularies.sentencepiece_vocabulary(model_path, extra_ids)
  fields = json.loads(json.dumps(vocabularies.to_dict(vocabulary)))
  restored = vocabularies.from_dict(fields)
  text = 'the dog sat'
  assert restored == vocabulary
  assert vocabulary == restored
  assert hash(restored) == hash(vocabulary)
  assert restored.encode(text) == vocabulary.encode(text)
  assert restored.decode(vocabulary.encode(text)) == text
  assert restored.vocab_size == vocabulary.vocab_size
  # A second round: the copy in memory can be stored again.
  assert vocabularies.to_dict(restored) == vocabularies.to_dict(vocabulary)
  assert copy.deepcopy(restored) == vocabulary


def test_vocabularies_with_other_content_differ(model_path, tmp_path):
  vocabulary = vocabularies.sentencepiece_vocabulary(model_path, 3)
  plain = seqio.SentencePieceVocabulary(model_path, extra_ids=3)
  assert vocabulary == plain
  assert plain == vocabulary
  assert vocabulary != vocabularies.sentencepiece_vocabulary(model_path, 4)
  assert vocabulary != vocabularies.byte_vocabulary(3)


def test_missing_sentencepiece_model_is_named(tmp_path):
  path = str(tmp_path / 'nowhere.model')
  with pytest.raises(errors.ConfigError, match=r'nowhere\.model'):
    vocabularies.sentencepiece_vocabulary(path)


def test_file_that_is_no_model_is_named(tmp_path):
  path = tmp_path / 'pointer.model'
  path.write_text('version https://git-lfs.github.com/spec/v1\n')
  with pytest.raises(errors.ConfigError, match=r'pointer\.model.*Git LFS'):
    vocabularies.sentencepiece_vocabulary(str(path))


def test_model_with_other_special_ids_is_refused(tmp_path):
  path = train_model(tmp_path / 'odd.model', pad_id=3)
  with pytest.raises(errors.ConfigError, match='--pad_id=0'):
    vocabularies.sentencepiece_vocabulary(path)


def test_hf_byt5_directory(tmp_path):
  config = {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': 125}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  vocabulary = vocabularies.load_from_hf_directory(str(tmp_path))
  assert vocabulary == vocabularies.byte_vocabulary(125)
  assert vocabulary.vocab_size == 384  # As the released models have it.


@pytest.mark.parametrize(
  ('config', 'extra_ids'),
  [(None, 100), ({'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}, 0)],
)
def test_hf_sentencepiece_directory(tmp_path, model_path, config, extra_ids):
  with open(model_path, 'rb') as file:
    (tmp_path / 'spiece.model').write_bytes(file.read())
  if config is not None:
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  vocabulary = vocabularies.load_from_hf_directory(str(tmp_path))
  assert vocabulary.extra_ids == extra_ids
  assert vocabulary.encode('the cat')


def test_hf_directory_without_vocabulary_is_an_error(tmp_path):
  with pytest.raises(errors.ConfigError, match=r'spiece\.model'):
    vocabularies.load_from_hf_directory(str(tmp_path))


def test_hf_directory_with_broken_config_is_an_error(tmp_path):
  (tmp_path / 'tokenizer_config.json').write_text('{')
  with pytest.raises(errors.ConfigError, match='tokenizer_config'):
    vocabularies.load_from_hf_directory(str(tmp_path))


def test_vocabularies_of_other_kinds_are_refused():
  with pytest.raises(errors.ConfigError, match='PassThroughVocabulary'):
    vocabularies.to_dict(seqio.PassThroughVocabulary(10))
  with pytest.raises(errors.ConfigError, match="'word'"):
    vocabularies.from_dict({'kind': 'word'})
