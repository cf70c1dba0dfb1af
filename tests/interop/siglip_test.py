import dataclasses
import json
import pathlib
import re
import shutil

import hf_directories
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import safetensors_output
from perlhf_jax.interop import siglip
from perlhf_jax.models import vit_config

TOWER = hf_directories.GOLDEN / 'hf_pali' / 'siglip'
TENSORS = safetensors_numpy.load_file(TOWER / hf_directories.WEIGHTS)
CONFIG = vit_config.ViTConfig(
  image_size=56, patch_size=14, width=48, depth=2, mlp_dim=96, num_heads=4
)
# Patches, width and hidden width differ: what is left untransposed shows.
SHAPES = {
  'embedding/kernel': (14, 14, 3, 48),
  'embedding/bias': (48,),
  'pos_embedding': (1, 16, 48),
  'Transformer/encoder_norm/scale': (48,),
  'Transformer/encoder_norm/bias': (48,),
} | {
  f'Transformer/encoderblock_{block}/{name}': shape
  for block in range(2)
  for name, shape in {
    **{
      f'LayerNorm_{i}/{leaf}': (48,)
      for i in (0, 1)
      for leaf in ('scale', 'bias')
    },
    **{
      f'MultiHeadDotProductAttention_0/{projection}/{leaf}': shape
      for projection in ('query', 'key', 'value', 'out')
      for leaf, shape in (('kernel', (48, 48)), ('bias', (48,)))
    },
    'MlpBlock_0/Dense_0/kernel': (48, 96),
    'MlpBlock_0/Dense_0/bias': (96,),
    'MlpBlock_0/Dense_1/kernel': (96, 48),
    'MlpBlock_0/Dense_1/bias': (48,),
  }.items()
}
# What a whole SigLIP has besides, and an image tower's pooling head.
OTHERS = {
  'logit_scale': np.ones(1, np.float32),
  'logit_bias': np.ones(1, np.float32),
  'text_model.embeddings.token_embedding.weight': np.ones((9, 5), np.float32),
  'text_model.encoder.layers.0.self_attn.q_proj.weight': np.ones(
    (5, 5), np.float32
  ),
  'text_model.head.weight': np.ones((5, 5), np.float32),
}
HEAD = {
  'head.probe': np.ones((1, 1, 48), np.float32),
  'head.attention.in_proj_weight': np.ones((144, 48), np.float32),
  'head.mlp.fc1.bias': np.ones(96, np.float32),
}


def _prefixed(tensors):
  return {f'vision_model.{name}': tensor for name, tensor in tensors.items()}


def _load(path):
  return siglip.load_params(path, siglip.load_config(path))


def _assert_same(params, expected):
  params, expected = tree_paths.flatten(params), tree_paths.flatten(expected)
  assert list(params) == list(expected)
  for path in params:
    assert params[path].dtype == np.float32
    np.testing.assert_array_equal(params[path], expected[path], err_msg=path)


def _error(function, *arguments, **keywords):
  with pytest.raises(errors.CheckpointError) as caught:
    function(*arguments, **keywords)
  return str(caught.value)


def _edit(tmp_path, edit_tensors=None, **config):
  return hf_directories.edit(TOWER, tmp_path / 'x', edit_tensors, **config)


def _whole_config(**vision):
  return {
    'model_type': 'siglip',
    'text_config': {'hidden_size': 5},
    'vision_config': vision,
  }


def _vision_config():
  return json.loads((TOWER / 'config.json').read_text())


def _write_config(path, raw):
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps(raw))
  return path


def test_the_architecture():
  assert siglip.load_config(TOWER) == CONFIG
  assert siglip.load_config(str(TOWER)) == CONFIG


def test_names_shapes_and_dtypes():
  flat = tree_paths.flatten(siglip.load_params(TOWER, CONFIG))
  assert {path: leaf.shape for path, leaf in flat.items()} == SHAPES
  for leaf in flat.values():
    assert leaf.dtype == np.float32 and leaf.flags['C_CONTIGUOUS']


def test_every_parameter_is_its_tensor():
  flat = tree_paths.flatten(siglip.load_params(TOWER, CONFIG))
  patches = TENSORS['embeddings.patch_embedding.weight']
  kernel = flat.pop('embedding/kernel')
  for row, column, channel, feature in ((0, 0, 0, 0), (3, 11, 1, 40)):
    assert (
      kernel[row, column, channel, feature]
      == patches[feature, channel, row, column]
    )
  np.testing.assert_array_equal(kernel, np.einsum('oihw->hwio', patches))
  np.testing.assert_array_equal(
    flat.pop('pos_embedding')[0],
    TENSORS['embeddings.position_embedding.weight'],
  )
  names = {
    'embedding/': 'embeddings.patch_embedding.',
    'Transformer/encoder_norm/': 'post_layernorm.',
    'Transformer/encoderblock_': 'encoder.layers.',
    '/LayerNorm_0/': '.layer_norm1.',
    '/LayerNorm_1/': '.layer_norm2.',
    '/MultiHeadDotProductAttention_0/': '.self_attn.',
    'query/': 'q_proj.',
    'key/': 'k_proj.',
    'value/': 'v_proj.',
    'out/': 'out_proj.',
    '/MlpBlock_0/Dense_0/': '.mlp.fc1.',
    '/MlpBlock_0/Dense_1/': '.mlp.fc2.',
    'kernel': 'weight',
    'scale': 'weight',
  }
  assert len(flat) == len(TENSORS) - 2
  for path, leaf in flat.items():
    tensor = path
    for ours, theirs in names.items():
      tensor = tensor.replace(ours, theirs)
    np.testing.assert_array_equal(leaf, TENSORS[tensor].T, err_msg=path)


@pytest.mark.parametrize('is_whole', [False, True])
@pytest.mark.parametrize('prefixed', [False, True])
def test_prefixes_other_towers_and_heads_do_not_matter(
  prefixed, is_whole, tmp_path
):
  def edit(tensors):
    tensors = tensors | HEAD
    tensors = _prefixed(tensors) if prefixed else tensors
    return tensors | OTHERS if is_whole else tensors

  path = _edit(tmp_path, edit)
  if is_whole:
    _write_config(path, _whole_config(**_vision_config()))
  assert siglip.load_config(path) == CONFIG
  _assert_same(_load(path), siglip.load_params(TOWER, CONFIG))


def test_shards(tmp_path):
  shutil.copy(TOWER / 'config.json', tmp_path)
  safetensors_output.write(
    tmp_path / hf_directories.WEIGHTS,
    {
      name: safetensors_output.Tensor(
        tensor.shape, tensor.dtype, lambda tensor=tensor: tensor
      )
      for name, tensor in TENSORS.items()
    },
    100_000,
  )
  assert len(list(tmp_path.glob('*.safetensors'))) > 2
  _assert_same(_load(tmp_path), siglip.load_params(TOWER, CONFIG))


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_other_float_types_become_float32(dtype, tmp_path):
  def cast(tensors):
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}

  flat = tree_paths.flatten(siglip.load_params(TOWER, CONFIG))
  expected = {
    path: leaf.astype(dtype).astype(np.float32) for path, leaf in flat.items()
  }
  _assert_same(_load(_edit(tmp_path, cast)), tree_paths.unflatten(expected))


def test_put_is_given_every_parameter_and_its_results_are_kept():
  given = {}

  def put(path, array):
    given[path] = np.asarray(array)
    return f'put {path}'

  params = siglip.load_params(TOWER, CONFIG, put)
  _assert_same(tree_paths.unflatten(given), siglip.load_params(TOWER, CONFIG))
  flat = tree_paths.flatten(params)
  assert flat == {path: f'put {path}' for path in SHAPES}


def test_sizes_that_the_hub_leaves_out(tmp_path):
  base = vit_config.ViTConfig(
    image_size=224,
    patch_size=16,
    width=768,
    depth=12,
    mlp_dim=3072,
    num_heads=12,
  )
  path = _write_config(
    tmp_path, _whole_config(model_type='siglip_vision_model')
  )
  assert siglip.load_config(path) == base
  path = _write_config(
    tmp_path,
    _whole_config(
      hidden_size=1152,
      image_size=384,
      intermediate_size=4304,
      num_attention_heads=16,
      num_hidden_layers=27,
      patch_size=14,
    ),
  )
  config = siglip.load_config(path)
  # Patches of 14 pixels cover 378 of 384.
  assert config == vit_config.ViTConfig(
    image_size=378,
    patch_size=14,
    width=1152,
    depth=27,
    mlp_dim=4304,
    num_heads=16,
  )
  shapes = {entry.path: entry.tensor_shape for entry in siglip.entries(config)}
  assert shapes['pos_embedding'] == (729, 1152)


def test_which_directories_are_siglips(tmp_path):
  assert siglip.is_siglip_directory(TOWER)
  assert not siglip.is_siglip_directory(hf_directories.TIED)
  assert not siglip.is_siglip_directory(tmp_path)
  assert not siglip.is_siglip_directory(tmp_path / 'absent')
  assert siglip.is_siglip_directory(_write_config(tmp_path, _whole_config()))
  assert not siglip.is_siglip_directory(
    _write_config(tmp_path, {'model_type': 'siglip2'})
  )
  (tmp_path / 'config.json').write_text('{"model_type": ')
  assert 'config.json cannot be read as JSON' in _error(
    siglip.is_siglip_directory, tmp_path
  )


def test_missing_and_unexpected_tensors_are_listed(tmp_path):
  def edit(tensors):
    tensors = {
      name: tensor
      for name, tensor in tensors.items()
      if not name.startswith('encoder.layers.1')
    }
    return _prefixed(tensors) | {'adapter.weight': np.zeros(3, np.float32)}

  error = _error(_load, _edit(tmp_path, edit))
  assert 'missing tensors: vision_model.encoder.layers.1.layer_norm1' in error
  assert 'and 11 more; unexpected tensors: adapter.weight.' in error
  assert str(tmp_path / 'x') in error


def test_a_deeper_tower_than_the_configuration_says(tmp_path):
  error = _error(_load, _edit(tmp_path, num_hidden_layers=1))
  assert 'unexpected tensors: encoder.layers.1.layer_norm1.bias' in error
  assert 'missing' not in error


@pytest.mark.parametrize('name', sorted(TENSORS))
def test_any_tensor_of_another_shape_is_an_error(name, tmp_path):
  right = TENSORS[name].shape
  wrong = (*right[:-1], right[-1] + 1)

  def edit(tensors):
    return tensors | {name: np.zeros(wrong, np.float32)}

  error = _error(_load, _edit(tmp_path, edit))
  assert (
    f'tensor {name} has shape {list(wrong)}, and should have {list(right)}'
  ) in error
  assert str(tmp_path / 'x') in error


def test_another_resolution_than_the_weights_have(tmp_path):
  assert (
    'tensor embeddings.position_embedding.weight has shape [16, 48], and '
    'should have [25, 48]'
  ) in _error(_load, _edit(tmp_path, image_size=70))


def test_a_tower_of_other_sizes_is_described():
  config = dataclasses.replace(CONFIG, image_size=70, depth=3)
  error = _error(siglip.load_params, TOWER, config)
  assert 'image_size is 56 in the file and 70 in' in error
  assert 'depth is 2 in the file and 3 in' in error
  assert 'width' not in error and str(TOWER / 'config.json') in error


def test_quantised_weights_are_an_error(tmp_path):
  name = 'encoder.layers.1.mlp.fc2.weight'

  def quantise(tensors):
    return tensors | {name: tensors[name].astype(np.int8)}

  assert f'tensor {name} is I8' in _error(_load, _edit(tmp_path, quantise))


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('model_type', 'siglip2', "model_type is 'siglip2'; supported are siglip"),
    ('model_type', 'siglip', 'has no vision_config'),
    ('hidden_size', None, 'no positive whole number under hidden_size'),
    ('image_size', [56, 70], 'no positive whole number under image_size'),
    ('num_hidden_layers', 0, 'no positive whole number under num_hidden'),
    ('hidden_act', 'gelu', "hidden_act is 'gelu'; only 'gelu_pytorch_tanh'"),
    ('layer_norm_eps', 1e-5, 'layer_norm_eps is 1e-05; only 1e-06'),
    ('num_channels', 1, 'num_channels is 1; only 3'),
    ('num_attention_heads', 5, 'not a multiple of num_attention_heads, 5'),
    ('patch_size', 57, 'image_size is 56, less than patch_size, 57'),
  ],
)
def test_a_configuration_that_is_not_supported(key, value, message, tmp_path):
  path = _edit(tmp_path, **{key: value})
  error = _error(siglip.load_config, path)
  assert message in error and str(path / 'config.json') in error


def test_the_activation_by_its_other_name(tmp_path):
  assert siglip.load_config(_edit(tmp_path, hidden_act='gelu_new')) == CONFIG


def test_a_missing_directory_or_configuration(tmp_path):
  error = _error(siglip.load_config, tmp_path / 'google' / 'siglip')
  assert re.search(r'There is no directory .*google/siglip; ', error)
  assert 'hf download' in error
  error = _error(siglip.load_params, tmp_path, CONFIG)
  assert f'{tmp_path} has no config.json; a Hugging Face SigLIP' in error


def test_missing_or_damaged_weights(tmp_path):
  shutil.copy(TOWER / 'config.json', tmp_path)
  error = _error(_load, tmp_path)
  assert f'{tmp_path} has no weights; a Hugging Face SigLIP' in error
  assert 'save_pretrained' in error
  weights = pathlib.Path(tmp_path / hf_directories.WEIGHTS)
  weights.write_bytes((TOWER / hf_directories.WEIGHTS).read_bytes()[:-8])
  error = _error(_load, tmp_path)
  assert 'cannot be read as safetensors' in error and str(weights) in error
