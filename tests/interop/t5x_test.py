import dataclasses
import json
import shutil
import weakref

from flax import serialization
import hf_directories
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import t5x_directories
import tiny_models

from perlhf_jax.core import tree_paths
from perlhf_jax.interop import t5x
from perlhf_jax.interop import t5x_names
from perlhf_jax.interop import t5x_read
from perlhf_jax.models import encoder_decoder

V1_1 = dataclasses.replace(
  tiny_models.CONFIG,
  num_decoder_layers=3,
  relative_attention_max_distance=128,
  dropout_rate=0.1,
)
CONFIGS = {
  'v1_1': V1_1,
  'v1_0': dataclasses.replace(
    V1_1, mlp_activations=('relu',), logits_via_embedding=True
  ),
  'umt5': dataclasses.replace(V1_1, relpos_bias_per_layer=True),
  'umt5_tied': dataclasses.replace(
    V1_1, relpos_bias_per_layer=True, logits_via_embedding=True
  ),
}
every_config = pytest.mark.parametrize('name', CONFIGS)


def _flat(config, dtype=np.float32):
  """Random weights with unrolled layers."""
  rng = np.random.default_rng(0)
  return {
    path: rng.normal(size=shape).astype(dtype)
    for path, shape in t5x_names.parameters(config).items()
  }


def _assert_equal(params, flat):
  found = tree_paths.flatten(params)
  assert set(found) == set(flat)
  for path, array in flat.items():
    assert found[path].dtype == np.float32
    np.testing.assert_array_equal(
      found[path], array.astype(np.float32), err_msg=path
    )


@every_config
def test_parameters_are_those_of_the_model(name):
  config = CONFIGS[name]
  model = encoder_decoder.make_model(config, None)
  shapes = jax.eval_shape(
    lambda: encoder_decoder.init_variables(model, jax.random.key(0))
  )['params']
  boxed = tree_paths.flatten(shapes)
  assert {path: leaf.value.shape for path, leaf in boxed.items()} == (
    t5x_names.parameters(config)
  )


@every_config
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_ours_to_t5x_to_ours_is_exact(name, dtype, tmp_path):
  config, flat = CONFIGS[name], _flat(CONFIGS[name], dtype)
  params, name = tree_paths.unflatten(flat), np.dtype(dtype).name
  step = t5x.save(params, config, tmp_path / 'run', 5, dtype=name)
  assert step == tmp_path / 'run' / 'checkpoint_5'
  assert [path.name for path in step.parent.iterdir()] == ['checkpoint_5']
  for path in (step, step.parent):
    assert t5x.is_t5x_checkpoint(path)
    assert t5x.load_config(path) == config
  _assert_equal(t5x.load_params(step, config), flat)


@pytest.mark.parametrize('name', ['umt5', 'umt5_tied'])
def test_a_bias_of_each_layer_is_written_for_the_scalable_network(
  name, tmp_path
):
  config, flat = CONFIGS[name], _flat(CONFIGS[name])
  step = t5x.save(tree_paths.unflatten(flat), config, tmp_path, 5)
  expected = t5x_directories.scanned(flat, config.num_heads)
  names = {t5x_directories.folder_of(tensor) for tensor in expected}
  assert names == {path.name for path in step.iterdir()} - {'checkpoint'}
  for tensor, array in expected.items():
    found = t5x_directories.read_tensor(step, tensor)
    np.testing.assert_array_equal(found, array, err_msg=tensor)


def test_arrays_on_devices_are_written(tmp_path):
  flat = _flat(V1_1)
  params = jax.tree.map(jnp.asarray, tree_paths.unflatten(flat))
  _assert_equal(
    t5x.load_params(t5x.save(params, V1_1, tmp_path, 0), V1_1), flat
  )


def _described(step):
  content = (step / 'checkpoint').read_bytes()
  return _without_chunks(serialization.msgpack_restore(content))


def _without_chunks(tree):
  """Where there is a choice: ours has no chunk of several layers."""
  if not isinstance(tree, dict):
    return tree
  return {k: _without_chunks(v) for k, v in tree.items() if k != 'chunks'}


@pytest.mark.parametrize('source', ['LEGACY', 'BFLOAT16', 'SCANNED'])
def test_what_is_written_is_what_t5x_writes(source, tmp_path):
  golden = getattr(t5x_directories, source) / t5x_directories.STEP
  config = t5x.load_config(golden)
  dtype = 'bfloat16' if source == 'BFLOAT16' else 'float32'
  params = t5x.load_params(golden, config)
  step = t5x.save(params, config, tmp_path, 7, dtype=dtype)
  ours, theirs = (_described(path) for path in (step, golden))
  assert {p.name for p in step.iterdir()} == {
    p.name for p in golden.iterdir() if not p.name.startswith('state.')
  }
  for path in step.glob('*/.zarray'):
    assert _without_chunks(json.loads(path.read_text())) == _without_chunks(
      json.loads((golden / path.relative_to(step)).read_text())
    )
  assert ours['version'] == theirs['version'] == 3
  assert ours['optimizer']['target'] == theirs['optimizer']['target']
  assert set(ours) == set(theirs)
  assert ours['optimizer']['state'] == {'step': 7}
  # T5X's other checkpoint has an optimizer's state too.
  assert source == 'SCANNED' or theirs['optimizer']['state'] == {'step': 7}


def test_large_arrays_are_written_in_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr('perlhf_jax.interop.t5x_write._CHUNK_BYTES', 1000)
  flat = _flat(V1_1)
  step = t5x.save(tree_paths.unflatten(flat), V1_1, tmp_path, 7)
  folder = step / t5x_directories.folder_of('token_embedder/embedding')
  # Of [40, 16] float32.
  assert json.loads((folder / '.zarray').read_text())['chunks'] == [10, 16]
  assert {path.name for path in folder.iterdir()} == {
    '.zarray', '0.0', '1.0', '2.0', '3.0'
  }  # fmt: skip
  _assert_equal(t5x.load_params(step, V1_1), flat)


@every_config
@pytest.mark.parametrize('heads', [None, V1_1.num_heads])
@pytest.mark.parametrize('block', [1, 5000, t5x_read.BLOCK_BYTES])
def test_stacked_layers_are_read_one_by_one(
  name, heads, block, tmp_path, monkeypatch
):
  config, flat = CONFIGS[name], _flat(CONFIGS[name])
  stacked = t5x_directories.scanned(flat, heads)
  assert len(stacked) < len(flat)
  t5x_directories.write(tmp_path / 'checkpoint_7', stacked)
  assert t5x.load_config(tmp_path) == config
  sizes = []
  read = t5x_read.Reader._read

  def watched(self, tensor, *arguments, **keywords):
    array = read(self, tensor, *arguments, **keywords)
    if config.num_decoder_layers in array.shape and 'decoder/' in tensor:
      sizes.append(array.nbytes)
    return array

  monkeypatch.setattr(t5x_read, 'BLOCK_BYTES', block)
  monkeypatch.setattr(t5x_read.Reader, '_read', watched)
  _assert_equal(t5x.load_params(tmp_path, config), flat)
  largest = max(sizes, default=0)
  # Three layers of an MLP's matrix are 6912 bytes.
  assert largest <= block and (largest > 0) == (block > 1)


@pytest.mark.parametrize('source', ['LEGACY', 'SCANNED'])
def test_what_was_read_is_let_go_before_the_next(source, monkeypatch):
  path = getattr(t5x_directories, source)
  blocks = []
  read = t5x_read.Reader._read

  def watched(*arguments, **keywords):
    assert not any(block() is not None for block in blocks)
    array = read(*arguments, **keywords)
    blocks.append(weakref.ref(array))
    return array

  monkeypatch.setattr(t5x_read.Reader, '_read', watched)
  t5x.load_params(
    path, t5x.load_config(path), lambda path, array: np.asarray(array).size
  )
  assert len(blocks) > 20


def test_unrolled_layers_with_heads_apart(tmp_path):
  config, flat = V1_1, _flat(V1_1)
  apart = {
    path: t5x_directories.scanned({path: array}, config.num_heads)
    for path, array in flat.items()
  }
  arrays = {
    path: next(iter(stacked.values())).squeeze(1)
    if 'layers_' in path
    else flat[path]
    for path, stacked in apart.items()
  }
  assert arrays[t5x_directories.QUERY].ndim == 3
  t5x_directories.write(tmp_path / 'checkpoint_7', arrays)
  assert t5x.load_config(tmp_path) == config
  _assert_equal(t5x.load_params(tmp_path, config), flat)


@pytest.mark.parametrize('dtype', [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_dtypes_become_float32(dtype, tmp_path):
  flat = _flat(V1_1, dtype)
  t5x_directories.write(tmp_path / 'checkpoint_7', flat)
  _assert_equal(t5x.load_params(tmp_path, V1_1), flat)


def test_bfloat16_of_version_2(tmp_path):
  path = t5x_directories.copy(t5x_directories.BFLOAT16, tmp_path / 'x')
  config = t5x.load_config(path)
  before = tree_paths.flatten(t5x.load_params(path, config))
  t5x_directories.to_version_2(path)
  assert t5x.load_config(path) == config
  _assert_equal(t5x.load_params(path, config), before)


def test_tensors_inside_the_msgpack_file(tmp_path):
  path = t5x_directories.copy(t5x_directories.LEGACY, tmp_path / 'x')
  config = t5x.load_config(path)
  before = tree_paths.flatten(t5x.load_params(path, config))
  name = 'encoder/encoder_norm/scale'

  def inline(content):
    norm = content['optimizer']['target']['encoder']['encoder_norm']
    norm['scale'] = before[name]

  t5x_directories.edit_index(path, inline)
  shutil.rmtree(path / t5x_directories.folder_of(name))
  _assert_equal(t5x.load_params(path, config), before)


def test_put_is_given_one_array_at_a_time():
  config = t5x.load_config(t5x_directories.SCANNED)
  expected = tree_paths.flatten(
    t5x.load_params(t5x_directories.SCANNED, config)
  )
  given = {}

  def put(path, array):
    assert path not in given
    given[path] = np.asarray(array)
    assert given[path].dtype == np.float32
    return path

  params = t5x.load_params(t5x_directories.SCANNED, config, put)
  assert tree_paths.flatten(params) == {path: path for path in expected}
  _assert_equal(tree_paths.unflatten(given), expected)


def test_activations_are_the_users():
  config = dataclasses.replace(
    t5x.load_config(t5x_directories.LEGACY),
    mlp_activations=('silu', 'linear'),
    relative_attention_max_distance=64,
    dtype='bfloat16',
    scan_layers=True,
  )
  assert 'encoder' in t5x.load_params(t5x_directories.LEGACY, config)


def test_the_newest_complete_step_is_meant(tmp_path):
  for step in (9, 10):
    t5x_directories.write(tmp_path / f'checkpoint_{step}', _flat(V1_1))
  newest = {path: array + step for path, array in _flat(V1_1).items()}
  shutil.rmtree(tmp_path / 'checkpoint_10')
  t5x_directories.write(tmp_path / 'checkpoint_10', newest)
  shutil.copytree(tmp_path / 'checkpoint_9', tmp_path / 'checkpoint_11.tmp-1')
  (tmp_path / 'checkpoint_12').mkdir()
  _assert_equal(t5x.load_params(tmp_path, V1_1), newest)


def test_what_is_no_t5x_checkpoint(tmp_path):
  assert not t5x.is_t5x_checkpoint(tmp_path)
  assert not t5x.is_t5x_checkpoint(tmp_path / 'absent')
  assert not t5x.is_t5x_checkpoint(hf_directories.TIED)
  # TensorFlow's.
  (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "model-1"\n')
  assert not t5x.is_t5x_checkpoint(tmp_path)
  # Orbax's, of another program.
  other = tmp_path / 'other'
  (other / 'state').mkdir(parents=True)
  (other / 'state' / '_METADATA').write_text('{"tree_metadata": {}}')
  assert not t5x.is_t5x_checkpoint(other)
