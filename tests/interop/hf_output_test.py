import json

import hf_directories
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_names
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import output
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config

every_model = pytest.mark.parametrize(
  'source',
  [
    hf_directories.TIED,
    hf_directories.UNTIED,
    hf_directories.MT5,
    hf_directories.UMT5,
  ],
  ids=lambda path: path.name,
)


def _load(path):
  config = hf.load_config(path)
  return config, hf.load_params(path, config)


def _contents(params, config, **arguments):
  return hf_output.contents(
    params, config, **{'vocabulary': hf_directories.BYTES} | arguments
  )


def _assert_same(params, expected):
  params, expected = tree_paths.flatten(params), tree_paths.flatten(expected)
  assert list(params) == list(expected)
  for path in params:
    np.testing.assert_array_equal(params[path], expected[path], err_msg=path)


@pytest.mark.parametrize('max_shard_size', [10**9, 30_000, 1])
@every_model
def test_round_trip(source, max_shard_size, tmp_path):
  config, params = _load(source)
  path = tmp_path / 'out'
  output.write(_contents(params, config), path, max_shard_size=max_shard_size)
  again_config, again = _load(path)
  assert again_config == config
  _assert_same(again, params)
  files = sorted(path.glob('*.safetensors'))
  if max_shard_size == 10**9:
    assert [file.name for file in files] == [hf_directories.WEIGHTS]
  elif max_shard_size == 1:
    assert len(files) == len(hf_names.entries(config))
  else:
    tensor_bytes = [
      sum(t.nbytes for t in safetensors_numpy.load_file(file).values())
      for file in files
    ]
    assert len(files) > 1 and max(tensor_bytes) <= 30_000
    index = json.loads((path / hf_directories.INDEX).read_text())
    assert index['metadata']['total_size'] == sum(tensor_bytes)


@every_model
def test_what_is_written_is_what_transformers_wrote(source, tmp_path):
  config, params = _load(source)
  raw = json.loads((source / 'config.json').read_text())
  output.write(
    _contents(
      jax.tree.map(jnp.asarray, params), config, model_type=raw['model_type']
    ),
    tmp_path,
  )
  expected = {}
  for file in source.glob('*.safetensors'):
    expected |= safetensors_numpy.load_file(file)
  saved = safetensors_numpy.load_file(tmp_path / hf_directories.WEIGHTS)
  assert sorted(saved) == sorted(expected)
  for name in saved:
    np.testing.assert_array_equal(saved[name], expected[name])
  written = json.loads((tmp_path / 'config.json').read_text())
  for key, value in written.items():
    if key in raw:
      assert value == raw[key], key
  for name in ('tokenizer_config.json', 'generation_config.json'):
    assert json.loads((tmp_path / name).read_text())


def test_bfloat16_is_the_nearest_and_half_as_large(tmp_path):
  config, params = _load(hf_directories.TIED)
  output.write(_contents(params, config, dtype='bfloat16'), tmp_path)
  assert (tmp_path / hf_directories.WEIGHTS).stat().st_size < 0.6 * (
    (hf_directories.TIED / hf_directories.WEIGHTS).stat().st_size
  )
  expected = jax.tree.map(
    lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32), params
  )
  _assert_same(hf.load_params(tmp_path, config), expected)
  raw = json.loads((tmp_path / 'config.json').read_text())
  assert raw['torch_dtype'] == 'bfloat16'


def test_one_array_at_a_time_is_fetched_when_it_is_written(tmp_path):
  config, params = _load(hf_directories.UNTIED)
  fetched = []

  def fetch(path, leaf):
    assert leaf.shape == tree_paths.flatten(params)[path].shape
    fetched.append(path)
    return tree_paths.flatten(params)[path]

  shapes = jax.eval_shape(lambda: params)
  contents = _contents(shapes, config, fetch=fetch)
  assert not fetched
  output.write(contents, tmp_path / 'out')
  assert sorted(fetched) == sorted(tree_paths.flatten(params))
  _assert_same(hf.load_params(tmp_path / 'out', config), params)


def test_other_parameters_than_the_config_says():
  config, params = _load(hf_directories.TIED)
  flat = tree_paths.flatten(params)
  flat['extra/kernel'] = flat.pop('encoder/encoder_norm/scale')
  with pytest.raises(errors.CheckpointError) as caught:
    _contents(tree_paths.unflatten(flat), config)
  error = str(caught.value)
  assert 'missing parameters: encoder/encoder_norm/scale;' in error
  assert 'unexpected parameters: extra/kernel.' in error

  flat = tree_paths.flatten(params)
  flat['encoder/encoder_norm/scale'] = np.ones(17, np.float32)
  with pytest.raises(
    errors.CheckpointError,
    match=r'parameter encoder/encoder_norm/scale has shape \[17\]',
  ):
    _contents(tree_paths.unflatten(flat), config)


def test_a_vocabulary_that_transformers_does_not_have():
  config, params = _load(hf_directories.TIED)
  with pytest.raises(errors.CheckpointError, match="kind 'words'"):
    _contents(params, config, vocabulary={'kind': 'words', 'extra_ids': 0})


@pytest.mark.parametrize('extra_ids', [0, 7, 125])
def test_the_vocabulary_of_bytes_comes_back(extra_ids, tmp_path):
  # Imported here, because seqio is slow to import.
  from perlhf_jax.data import vocabularies

  config, params = _load(hf_directories.TIED)
  vocabulary = vocabularies.byte_vocabulary(extra_ids)
  output.write(
    _contents(params, config, vocabulary=vocabularies.to_dict(vocabulary)),
    tmp_path,
  )
  assert vocabularies.load_from_hf_directory(str(tmp_path)) == vocabulary


@pytest.mark.parametrize('extra_ids', [0, 100])
def test_a_sentencepiece_model_comes_back(extra_ids, tmp_path):
  import tiny_pieces

  from perlhf_jax.data import vocabularies

  config = t5_config.T5Config(
    vocab_size=256,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=12,
  )
  model = t5.T5(config)
  variables = encoder_decoder.init_variables(model, jax.random.key(0))
  params = jax.tree.map(
    lambda leaf: leaf.value,
    variables['params'],
    is_leaf=lambda leaf: hasattr(leaf, 'value'),
  )
  text = 'the quick brown fox jumps over the lazy dog while it rains'
  own = tmp_path / 'own.model'
  own.write_bytes(tiny_pieces.train([text, text[::-1]], 60))
  given = vocabularies.sentencepiece_vocabulary(str(own), extra_ids)
  path = tmp_path / 'out'
  output.write(
    _contents(params, config, vocabulary=vocabularies.to_dict(given)), path
  )

  vocabulary = vocabularies.load_from_hf_directory(str(path))
  assert vocabulary.vocab_size == given.vocab_size
  loaded_config, loaded = _load(path)
  # The embedding has rows to spare, as every published T5's.
  assert vocabulary.vocab_size < loaded_config.vocab_size
  tokens = np.asarray([[*vocabulary.encode('the lazy fox'), 1]], np.int32)
  assert vocabulary.decode(tokens[0].tolist()) == 'the lazy fox'
  prompt = prompts.of_tokens(tokens)
  np.testing.assert_array_equal(
    t5.T5(loaded_config).apply({'params': loaded}, prompt, tokens),
    model.apply({'params': params}, prompt, tokens),
  )
