import dataclasses
import re
import shutil

import hf_directories
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from perlhf_jax.core import errors
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_names


def _load(path):
  config = hf.load_config(path)
  return config, hf.load_params(path, config)


def _error(function, *arguments, **keywords):
  with pytest.raises(errors.CheckpointError) as caught:
    function(*arguments, **keywords)
  return str(caught.value)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('encoder.embed_tokens.weight', 'encoder and decoder share'),
    ('lm_head.weight', 'set tie_word_embeddings to false'),
  ],
)
def test_a_copy_that_differs_is_an_error(name, message, tmp_path):
  def add(tensors):
    tensors[name] = tensors['shared.weight'] + 1e-3
    return tensors

  path = hf_directories.edit(hf_directories.TIED, tmp_path / 'x', add)
  error = _error(_load, path)
  assert f'{name} differs from shared.weight' in error and message in error


def test_missing_and_unexpected_tensors_are_listed(tmp_path):
  def edit(tensors):
    tensors = {
      name: tensor
      for name, tensor in tensors.items()
      if not name.startswith('decoder.block.1')
    }
    tensors['adapter.weight'] = np.zeros(3, np.float32)
    return tensors

  error = _error(
    _load, hf_directories.edit(hf_directories.TIED, tmp_path / 'x', edit)
  )
  assert 'missing tensors: decoder.block.1.layer.0.SelfAttention.k' in error
  assert 'and 9 more; unexpected tensors: adapter.weight.' in error
  assert error.count('decoder.block.1') == 5
  assert str(tmp_path / 'x') in error


def test_an_untied_model_needs_its_output_layer(tmp_path):
  def drop(tensors):
    del tensors['lm_head.weight']
    return tensors

  error = _error(
    _load, hf_directories.edit(hf_directories.UNTIED, tmp_path / 'x', drop)
  )
  assert 'missing tensors: lm_head.weight.' in error


def test_an_embedding_that_is_missing_is_named(tmp_path):
  def drop(tensors):
    del tensors['shared.weight']
    return tensors

  error = _error(
    _load, hf_directories.edit(hf_directories.TIED, tmp_path / 'x', drop)
  )
  assert 'missing tensors: shared.weight.' in error


@pytest.mark.parametrize(
  'entry',
  [
    e
    for e in hf_names.entries(hf.load_config(hf_directories.TIED))
    if len(e.shape) == 2
  ],
  ids=lambda entry: entry.tensor,
)
def test_any_matrix_stored_the_wrong_way_round_is_an_error(entry, tmp_path):
  def transpose(tensors):
    tensors[entry.tensor] = np.ascontiguousarray(tensors[entry.tensor].T)
    return tensors

  error = _error(
    _load, hf_directories.edit(hf_directories.TIED, tmp_path / 'x', transpose)
  )
  right = list(entry.tensor_shape)
  assert (
    f'tensor {entry.tensor} has shape {right[::-1]}, and should have {right}'
  ) in error


def test_another_vocabulary_size_than_the_configuration_says(tmp_path):
  path = hf_directories.edit(
    hf_directories.TIED, tmp_path / 'x', vocab_size=400
  )
  assert (
    'tensor shared.weight has shape [384, 16], and should have [400, 16]'
  ) in _error(_load, path)


def test_a_model_of_another_architecture_is_described():
  config = dataclasses.replace(
    hf.load_config(hf_directories.TIED), emb_dim=32, logits_via_embedding=False
  )
  error = _error(hf.load_params, hf_directories.TIED, config)
  assert 'emb_dim is 16 in the file and 32 in' in error
  assert 'logits_via_embedding is True in the file and False in' in error
  assert 'num_heads' not in error


def test_quantised_weights_are_an_error(tmp_path):
  def quantise(tensors):
    tensors[hf_directories.LAYER] = tensors[hf_directories.LAYER].astype(
      np.int8
    )
    return tensors

  error = _error(
    _load, hf_directories.edit(hf_directories.TIED, tmp_path / 'x', quantise)
  )
  assert f'tensor {hf_directories.LAYER} is I8' in error


def test_a_missing_directory(tmp_path):
  error = _error(hf.load_config, tmp_path / 'google' / 'flan-t5-base')
  assert 'There is no directory' in error
  assert 'flan-t5-base' in error and 'hf download' in error


def test_a_missing_or_broken_config(tmp_path):
  assert 'has no config.json; a Hugging Face T5' in _error(
    hf.load_config, tmp_path
  )
  (tmp_path / 'config.json').write_text('{"model_type": ')
  assert 'config.json cannot be read as JSON' in _error(
    hf.load_config, tmp_path
  )
  (tmp_path / 'config.json').write_text('[]')
  assert 'holds a list' in _error(hf.load_config, tmp_path)


def test_missing_weights(tmp_path):
  shutil.copy(hf_directories.TIED / 'config.json', tmp_path)
  config = hf.load_config(tmp_path)
  assert 'has no weights' in _error(hf.load_params, tmp_path, config)
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  error = _error(hf.load_params, tmp_path, config)
  assert 'only as pytorch_model.bin' in error
  assert f"from_pretrained('{tmp_path}').save_pretrained(" in error


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'lfs pull'),
    (
      (hf_directories.TIED / hf_directories.WEIGHTS).read_bytes()[:-8],
      'cannot be read as safetensors',
    ),
    (b'', 'cannot be read as safetensors'),
  ],
)
def test_a_damaged_weights_file(content, message, tmp_path):
  shutil.copy(hf_directories.TIED / 'config.json', tmp_path)
  (tmp_path / hf_directories.WEIGHTS).write_bytes(content)
  error = _error(hf.load_params, tmp_path, hf.load_config(tmp_path))
  assert message in error and str(tmp_path / hf_directories.WEIGHTS) in error


def _copy_untied(tmp_path):
  target = tmp_path / 'sharded'
  shutil.copytree(hf_directories.UNTIED, target)
  return target, sorted(target.glob('*.safetensors'))


def test_a_missing_shard_is_named(tmp_path):
  path, shards = _copy_untied(tmp_path)
  shards[1].unlink()
  error = _error(_load, path)
  assert f'lacks {shards[1].name}, which {hf_directories.INDEX} names' in error


def test_shards_of_another_model(tmp_path):
  path, shards = _copy_untied(tmp_path)
  tensors = safetensors_numpy.load_file(shards[0])
  tensors['other'] = tensors.pop('shared.weight', next(iter(tensors.values())))
  safetensors_numpy.save_file(tensors, shards[0])
  error = _error(_load, path)
  assert re.search(
    rf'{shards[0].name} and {hf_directories.INDEX} disagree .*other', error
  )


def test_an_index_without_a_map(tmp_path):
  path, _ = _copy_untied(tmp_path)
  (path / hf_directories.INDEX).write_text('{"metadata": {}}')
  assert 'has no weight_map' in _error(_load, path)
