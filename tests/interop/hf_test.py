import dataclasses
import json

import hf_directories
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_names
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config

CROSS_BIAS = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
)


def _load(path):
  config = hf.load_config(path)
  return config, hf.load_params(path, config)


def _assert_same(params, expected):
  params, expected = tree_paths.flatten(params), tree_paths.flatten(expected)
  assert list(params) == list(expected)
  for path in params:
    assert params[path].dtype == np.float32
    np.testing.assert_array_equal(params[path], expected[path], err_msg=path)


def test_names_and_shapes_are_those_of_the_model():
  for source in (
    hf_directories.TIED,
    hf_directories.UNTIED,
    hf_directories.GOLDEN / 'hf_t5_v1_0',
  ):
    config, params = _load(source)
    variables = jax.eval_shape(
      lambda config=config: encoder_decoder.init_variables(
        t5.T5(config), jax.random.key(0)
      )
    )
    expected = tree_paths.flatten(jax.tree.map(jnp.shape, params))
    shapes = {
      path: leaf.value.shape if hasattr(leaf, 'value') else leaf.shape
      for path, leaf in tree_paths.flatten(variables['params']).items()
    }
    assert expected == shapes


def test_kernels_are_transposed_and_the_embedding_is_not():
  _, params = _load(hf_directories.TIED)
  tensors = safetensors_numpy.load_file(
    hf_directories.TIED / hf_directories.WEIGHTS
  )
  query = params['encoder']['layers_1']['attention']['query']['kernel']
  np.testing.assert_array_equal(query, tensors[hf_directories.LAYER].T)
  assert query.flags['C_CONTIGUOUS']
  np.testing.assert_array_equal(
    params['token_embedder']['embedding'], tensors['shared.weight']
  )


@pytest.mark.parametrize('max_shard_size', [10**9, 30_000, 1])
@pytest.mark.parametrize('source', [hf_directories.TIED, hf_directories.UNTIED])
def test_round_trip(source, max_shard_size, tmp_path):
  config, params = _load(source)
  hf.save(params, config, tmp_path / 'out', max_shard_size)
  again_config, again = _load(tmp_path / 'out')
  assert again_config == config
  _assert_same(again, params)
  files = sorted((tmp_path / 'out').glob('*.safetensors'))
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
    index = json.loads((tmp_path / 'out' / hf_directories.INDEX).read_text())
    assert index['metadata']['total_size'] == sum(tensor_bytes)


def test_saving_writes_the_tensors_that_were_read(tmp_path):
  config, params = _load(hf_directories.TIED)
  hf.save(jax.tree.map(jnp.asarray, params), config, tmp_path)
  expected = safetensors_numpy.load_file(
    hf_directories.TIED / hf_directories.WEIGHTS
  )
  saved = safetensors_numpy.load_file(tmp_path / hf_directories.WEIGHTS)
  assert sorted(saved) == sorted(expected)
  for name in saved:
    np.testing.assert_array_equal(saved[name], expected[name])


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_float_types_become_float32(dtype, tmp_path):
  config, params = _load(hf_directories.TIED)
  path = hf_directories.edit(
    hf_directories.TIED,
    tmp_path / 'cast',
    lambda tensors: {k: v.astype(dtype) for k, v in tensors.items()},
  )
  expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
  _assert_same(hf.load_params(path, config), expected)


def test_bfloat16_is_saved_as_it_is(tmp_path):
  config, params = _load(hf_directories.TIED)
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  hf.save(half, config, tmp_path)
  assert (tmp_path / hf_directories.WEIGHTS).stat().st_size < 0.6 * (
    (hf_directories.TIED / hf_directories.WEIGHTS).stat().st_size
  )
  expected = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
  _assert_same(hf.load_params(tmp_path, config), expected)


def test_copies_of_the_embedding_and_unused_tensors_are_accepted(tmp_path):
  def add(tensors):
    for name in (*hf_names.EMBEDDING_COPIES, 'lm_head.weight'):
      tensors[name] = tensors['shared.weight']
    tensors[CROSS_BIAS] = np.ones((32, 3), np.float32)
    return tensors

  config, params = _load(hf_directories.TIED)
  _assert_same(
    hf.load_params(
      hf_directories.edit(hf_directories.TIED, tmp_path / 'x', add), config
    ),
    params,
  )


@pytest.mark.parametrize(
  'name', ['decoder.embed_tokens.weight', 'lm_head.weight']
)
def test_a_tied_embedding_may_be_under_another_of_its_names(name, tmp_path):
  def rename(tensors):
    tensors[name] = tensors.pop('shared.weight')
    return tensors

  config, params = _load(hf_directories.TIED)
  path = hf_directories.edit(hf_directories.TIED, tmp_path / 'x', rename)
  _assert_same(hf.load_params(path, config), params)


@pytest.mark.parametrize('keep_lm_head', [True, False])
def test_what_transformers_5_writes_of_an_unscaled_model(
  keep_lm_head, tmp_path
):
  def edit(tensors):
    if not keep_lm_head:
      del tensors['lm_head.weight']
    return tensors

  path = hf_directories.edit(
    hf_directories.UNTIED,
    tmp_path / 'x',
    edit,
    tie_word_embeddings=True,
    scale_decoder_outputs=False,
  )
  config, params = _load(path)
  original_config, expected = _load(hf_directories.UNTIED)
  assert config == original_config
  if not keep_lm_head:
    embedding = expected['token_embedder']['embedding']
    expected['decoder']['logits_dense']['kernel'] = embedding.T
  _assert_same(params, expected)


def test_what_does_not_change_the_weights_is_free():
  config, params = _load(hf_directories.TIED)
  config = dataclasses.replace(
    config,
    dtype='bfloat16',
    dropout_rate=0.0,
    scan_layers=True,
    remat_policy='full',
  )
  _assert_same(hf.load_params(hf_directories.TIED, config), params)


def test_is_hf_directory(tmp_path):
  assert hf.is_hf_directory(hf_directories.TIED)
  assert hf.is_hf_directory(str(hf_directories.UNTIED))
  assert not hf.is_hf_directory(tmp_path)
  assert not hf.is_hf_directory(tmp_path / 'absent')
  (tmp_path / 'config.gin').write_text('')
  assert not hf.is_hf_directory(tmp_path)
  for name in (
    'config.json',
    'pytorch_model.bin',
    hf_directories.WEIGHTS,
    hf_directories.INDEX,
  ):
    (tmp_path / name).write_text('{}')
    assert hf.is_hf_directory(tmp_path)
    (tmp_path / name).unlink()


def test_a_directory_with_a_sentencepiece_model(tmp_path):
  # Imported here, because seqio is slow to import.
  import sentencepiece

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
  hf.save(params, config, tmp_path)
  text = 'the quick brown fox jumps over the lazy dog while it rains'
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([text, text[::-1]]),
    model_prefix=str(tmp_path / 'spiece'),
    vocab_size=60,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )

  vocabulary = vocabularies.load_from_hf_directory(str(tmp_path))
  loaded_config, loaded = _load(tmp_path)
  # The embedding has rows to spare, as every published T5's.
  assert vocabulary.vocab_size < loaded_config.vocab_size
  tokens = np.asarray([[*vocabulary.encode('the lazy fox'), 1]], np.int32)
  assert vocabulary.decode(tokens[0].tolist()) == 'the lazy fox'
  prompt = prompts.of_tokens(tokens)
  np.testing.assert_array_equal(
    t5.T5(loaded_config).apply({'params': loaded}, prompt, tokens),
    model.apply({'params': params}, prompt, tokens),
  )
