"""PaLIs as their parts, and reward models with their head."""

import ast
import json
import re
import shutil

import hf_directories
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import tiny_models
import tiny_pali

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.interop import output
from perlhf_jax.interop import pali_directory
from perlhf_jax.interop import peft
from perlhf_jax.interop import readmes
from perlhf_jax.interop import reward_directory
from perlhf_jax.interop import reward_head
from perlhf_jax.interop import siglip
from perlhf_jax.interop import siglip_output
from perlhf_jax.models import lora as lora_lib

SIGLIP = hf_directories.GOLDEN / 'hf_pali' / 'siglip'
CONFIG = tiny_pali.CONFIG
HEADS = {
  'score': {
    'kernel': np.arange(16, dtype=np.float32)[:, None] / 7,
    'bias': np.full(1, 0.5, np.float32),
  }
}
VOCABULARY = {'vocabulary': hf_directories.BYTES}


def _error(function, *arguments, **keywords):
  with pytest.raises(errors.CheckpointError) as caught:
    function(*arguments, **keywords)
  return str(caught.value)


def _assert_same(tree, expected):
  flat, expected = tree_paths.flatten(tree), tree_paths.flatten(expected)
  assert list(flat) == list(expected)
  for path in flat:
    np.testing.assert_array_equal(flat[path], expected[path], err_msg=path)


def test_an_image_tower_is_written_as_transformers_wrote_it(tmp_path):
  config = siglip.load_config(SIGLIP)
  params = siglip.load_params(SIGLIP, config)
  output.write(siglip_output.contents(params, config), tmp_path)
  assert siglip.is_siglip_directory(tmp_path)
  assert siglip.load_config(tmp_path) == config
  _assert_same(siglip.load_params(tmp_path, config), params)
  expected = safetensors_numpy.load_file(SIGLIP / hf_directories.WEIGHTS)
  saved = safetensors_numpy.load_file(tmp_path / hf_directories.WEIGHTS)
  assert sorted(saved) == sorted(
    f'vision_model.{name.removeprefix("vision_model.")}' for name in expected
  )
  for name, tensor in expected.items():
    name = f'vision_model.{name.removeprefix("vision_model.")}'
    np.testing.assert_array_equal(saved[name], tensor)
  raw = json.loads((SIGLIP / 'config.json').read_text())
  written = json.loads((tmp_path / 'config.json').read_text())
  assert {key: written[key] for key in raw} == raw


def test_other_parameters_than_those_of_an_image_tower():
  config = siglip.load_config(SIGLIP)
  flat = tree_paths.flatten(siglip.load_params(SIGLIP, config))
  flat['pos_embedding'] = flat['pos_embedding'][0]
  error = _error(siglip_output.contents, tree_paths.unflatten(flat), config)
  assert 'parameter pos_embedding has shape [16, 48]' in error
  assert '[1, 16, 48] by its ViTConfig' in error


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_round_trip_of_a_pali(dtype, tmp_path):
  params = tiny_models.params(CONFIG)
  path = tmp_path / 'out'
  contents = pali_directory.contents(params, CONFIG, dtype=dtype, **VOCABULARY)
  output.write(contents, path, max_shard_size=3000)
  assert len(list(path.glob('t5/*.safetensors'))) > 2
  assert len(list(path.glob('siglip/*.safetensors'))) > 2
  assert pali_directory.is_pali_directory(path)
  assert not hf.is_hf_directory(path)
  assert pali_directory.load_config(path) == CONFIG
  put = {}
  loaded = pali_directory.load_params(
    path, CONFIG, lambda name, array: put.setdefault(name, np.asarray(array))
  )
  expected = jax.tree.map(
    lambda leaf: leaf.astype(output.DTYPES[dtype]).astype(np.float32), params
  )
  _assert_same(loaded, expected)
  assert sorted(put) == sorted(tree_paths.flatten(params))
  # Each part is one of its own.
  assert siglip.load_config(path / 'siglip') == CONFIG.vit
  assert hf.load_config(path / 't5').image_size is None


def test_what_is_fetched_of_a_pali_has_the_paths_of_the_whole(tmp_path):
  params = tiny_models.params(CONFIG)
  fetched = []

  def fetch(path, leaf):
    fetched.append(path)
    return leaf

  contents = pali_directory.contents(params, CONFIG, fetch=fetch, **VOCABULARY)
  output.write(contents, tmp_path / 'out')
  assert sorted(fetched) == sorted(tree_paths.flatten(params))


def test_a_pali_without_one_of_its_parts(tmp_path):
  params = tiny_models.params(CONFIG)
  less = {k: v for k, v in params.items() if k != 'image_projection'}
  assert 'missing parameters: image_projection/bias' in _error(
    pali_directory.contents, less, CONFIG, **VOCABULARY
  )
  whole = tmp_path / 'whole'
  output.write(pali_directory.contents(params, CONFIG, **VOCABULARY), whole)
  for part, message in (
    ('t5', 'There is no directory'),
    ('siglip', 'There is no directory'),
    (pali_directory.PROJECTION, f'lacks {pali_directory.PROJECTION}'),
  ):
    path = tmp_path / part
    shutil.copytree(whole, path)
    if (path / part).is_dir():
      shutil.rmtree(path / part)
    else:
      (path / part).unlink()
    assert pali_directory.is_pali_directory(path)
    error = _error(
      lambda path=path: pali_directory.load_params(
        path, pali_directory.load_config(path)
      )
    )
    assert message in error and str(path) in error


def test_a_projection_of_another_pali(tmp_path):
  params = tiny_models.params(CONFIG)
  output.write(pali_directory.contents(params, CONFIG, **VOCABULARY), tmp_path)
  file = tmp_path / pali_directory.PROJECTION
  safetensors_numpy.save_file({'weight': np.ones((16, 7), np.float32)}, file)
  assert f'{file} does not hold the tensors of its PaliConfig; missing' in (
    _error(pali_directory.load_params, tmp_path, CONFIG)
  )
  safetensors_numpy.save_file(
    {'weight': np.ones((16, 7), np.float32), 'bias': np.ones(16, np.float32)},
    file,
  )
  assert 'weight has shape [16, 7], and should have [16, 20]' in _error(
    pali_directory.load_params, tmp_path, CONFIG
  )


def _t5_reward(path, **keywords):
  config = hf.load_config(hf_directories.UNTIED)
  params = hf.load_params(hf_directories.UNTIED, config)
  output.write(
    reward_directory.contents(params, HEADS, config, **VOCABULARY | keywords),
    path,
  )
  return config, params


def test_a_reward_model_is_a_t5_and_its_head(tmp_path):
  config, params = _t5_reward(tmp_path, dtype='bfloat16')
  assert reward_head.is_there(tmp_path)
  assert hf.load_config(tmp_path) == config
  rounded = jax.tree.map(
    lambda leaf: leaf.astype(output.DTYPES['bfloat16']).astype(np.float32),
    params,
  )
  _assert_same(hf.load_params(tmp_path, config), rounded)
  # The head keeps its numbers.
  _assert_same(reward_head.load(tmp_path, config), HEADS)
  tensors = safetensors_numpy.load_file(tmp_path / reward_head.FILE)
  assert {name: tensor.shape for name, tensor in tensors.items()} == {
    'weight': (1, 16),
    'bias': (1,),
  }
  assert not reward_head.is_there(hf_directories.UNTIED)


def test_a_reward_model_that_is_a_pali(tmp_path):
  params = tiny_models.params(CONFIG)
  output.write(
    reward_directory.contents(params, HEADS, CONFIG, **VOCABULARY), tmp_path
  )
  assert pali_directory.load_config(tmp_path) == CONFIG
  _assert_same(pali_directory.load_params(tmp_path, CONFIG), params)
  _assert_same(reward_head.load(tmp_path, CONFIG), HEADS)


def test_a_head_that_is_missing_damaged_or_of_another_model(tmp_path):
  config, _ = _t5_reward(tmp_path)
  file = tmp_path / reward_head.FILE
  file.write_bytes(file.read_bytes()[:-3])
  assert 'cannot be read as safetensors' in _error(
    reward_head.load, tmp_path, config
  )
  safetensors_numpy.save_file({'weight': np.ones((1, 16), np.float32)}, file)
  assert 'missing tensors: bias' in _error(reward_head.load, tmp_path, config)
  safetensors_numpy.save_file(
    {'weight': np.ones((1, 9), np.float32), 'bias': np.ones(1, np.float32)},
    file,
  )
  assert 'weight has shape [1, 9], and should have [1, 16]' in _error(
    reward_head.load, tmp_path, config
  )
  file.unlink()
  assert f'lacks {reward_head.FILE}' in _error(
    reward_head.load, tmp_path, config
  )
  assert 'missing parameters: score/bias' in _error(
    reward_head.contents, {'score': {'kernel': np.ones((16, 1))}}, config
  )


def _code(readme):
  return '\n'.join(re.findall(r'```python\n(.*?)```', readme, re.S))


def test_readmes_hold_python_for_their_directory(tmp_path):
  config, _ = _t5_reward(tmp_path / 'merged')
  lora = tiny_models.adapted(lora_lib.LoraConfig(rank=2), config)[1]
  output.write(
    peft.contents(
      lora, lora_lib.LoraConfig(rank=2), config, base='B', heads=HEADS
    ),
    tmp_path / 'adapter',
  )
  output.write(
    reward_directory.contents(
      tiny_models.params(CONFIG), HEADS, CONFIG, **VOCABULARY
    ),
    tmp_path / 'pali',
  )
  for name, defined in (
    ('merged', {'score'}),
    ('adapter', {'score'}),
    ('pali', {'encode', 'score'}),
  ):
    readme = (tmp_path / name / readmes.FILE).read_text()
    tree = ast.parse(_code(readme))
    assert {
      node.name for node in tree.body if isinstance(node, ast.FunctionDef)
    } == defined
    files = re.findall(r'\{path\}/([\w./]+)', readme)
    assert files
    for file in files:
      assert (tmp_path / name / file).exists()
