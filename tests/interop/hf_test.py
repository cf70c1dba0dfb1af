import dataclasses

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
from perlhf_jax.models import t5

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
    hf_directories.UMT5,
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
