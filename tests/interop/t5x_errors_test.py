import dataclasses
import re
import resource
import shutil
import signal

from flax import serialization
import numpy as np
import pytest
import t5x_directories

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import t5x
from perlhf_jax.interop import t5x_names

QUERY = t5x_directories.QUERY
FOLDER = t5x_directories.folder_of(QUERY)


def _load(path):
  return t5x.load_params(path, t5x.load_config(path))


def _error(function, *arguments):
  with pytest.raises(errors.CheckpointError) as caught:
    function(*arguments)
  return str(caught.value)


@pytest.fixture
def step(tmp_path):
  return t5x_directories.copy(t5x_directories.LEGACY, tmp_path / 'x')


def test_where_there_is_nothing(tmp_path):
  error = _error(t5x.load_config, tmp_path / 'absent')
  assert f'{tmp_path / "absent"} is not a folder; a T5X checkpoint is' in error
  assert 'is not a T5X checkpoint; a T5X' in _error(t5x.load_config, tmp_path)


def test_missing_tensors_are_listed(step):
  for path in step.glob('target.encoder.layers_1.*'):
    shutil.rmtree(path)
  error = _error(t5x.load_config, step)
  assert f'{step} lists tensors whose files are missing: encoder/laye' in error
  assert 'and 4 more. Copy or download them' in error


def test_a_missing_chunk_is_not_zeros(step):
  (step / FOLDER / '0.0').unlink()
  t5x.load_config(step)
  error = _error(_load, step)
  assert f'{step}: tensor {QUERY} cannot be read (' in error
  assert 'tensorstore_spec' not in error


@pytest.mark.parametrize('content', [b'', 0.5, b'no gzip at all'])
def test_a_damaged_chunk(content, step):
  chunk = step / FOLDER / '0.0'
  before = chunk.read_bytes()
  chunk.write_bytes(before[: len(before) // 2] if content == 0.5 else content)
  assert f'tensor {QUERY} cannot be read (' in _error(_load, step)


def test_damaged_metadata_of_a_tensor(step):
  (step / FOLDER / '.zarray').write_text('{"chunks": ')
  error = _error(t5x.load_config, step)
  assert f'tensors that cannot be opened: {QUERY} (' in error


def test_a_missing_or_damaged_index(step):
  index = step / 'checkpoint'
  content = index.read_bytes()
  for damaged in (content[:-100], b'', b'\x93\x01\x02\x03'):
    index.write_bytes(damaged)
    assert f'{index} cannot be read as msgpack (' in _error(_load, step)
  index.unlink()
  assert t5x.is_t5x_checkpoint(step)
  assert f'{step} lacks the file "checkpoint"' in _error(_load, step)


@pytest.mark.parametrize('version', [None, 1, 4])
def test_other_versions_are_refused(version, step):
  t5x_directories.edit_index(step, lambda c: c | {'version': version})
  assert f'has version {version}; only 2 and 3' in _error(_load, step)


def test_an_index_without_weights(step):
  t5x_directories.edit_index(step, lambda c: c['optimizer'].pop('target') and c)
  assert 'lists no weights under "target"' in _error(_load, step)


@pytest.mark.parametrize(
  'path', ['../other/', '/etc/target', 'a/b', '', '..', None, 3]
)
def test_a_tensor_elsewhere_is_refused(path, step):
  def edit(content):
    content['optimizer']['target']['encoder']['encoder_norm']['scale'][
      'kvstore'
    ]['path'] = path

  t5x_directories.edit_index(step, edit)
  error = _error(_load, step)
  assert 'not a folder in' in error or 'not an array' in error


@pytest.mark.parametrize('leaf', [None, 7, 'http://x', {'driver': 'n5'}])
def test_what_is_no_tensor_is_refused(leaf, step):
  def edit(content):
    content['optimizer']['target']['encoder']['encoder_norm']['scale'] = leaf

  t5x_directories.edit_index(step, edit)
  assert 'encoder/encoder_norm/scale is ' in _error(_load, step)


def test_an_index_of_another_checkpoint(step):
  def edit(content):
    norm = content['optimizer']['target']['encoder']['encoder_norm']
    norm['scale']['metadata']['shape'] = [9]

  t5x_directories.edit_index(step, edit)
  assert (
    'tensor encoder/encoder_norm/scale has shape [8] in its own files and [9] '
    'in the file "checkpoint"'
  ) in _error(_load, step)


def _flat(source=t5x_directories.LEGACY):
  return tree_paths.flatten(_load(source))


def _written(tmp_path, flat):
  t5x_directories.write(tmp_path / 'y' / 'checkpoint_7', flat)
  return tmp_path / 'y'


def test_missing_and_unexpected_tensors_are_listed(tmp_path):
  flat = _flat()
  del flat['decoder/decoder_norm/scale'], flat[QUERY]
  flat['adapter/kernel'] = np.zeros((3, 3), np.float32)
  error = _error(t5x.load_config, _written(tmp_path, flat))
  assert (
    f'missing tensors: decoder/decoder_norm/scale, {QUERY}; unexpected '
    'tensors: adapter/kernel.'
  ) in error


@pytest.mark.parametrize(
  'name',
  [
    'token_embedder/embedding',
    'encoder/layers_0/attention/query/kernel',
    'encoder/layers_0/mlp/wi_0/kernel',
    'encoder/relpos_bias/rel_embedding',
    'decoder/layers_0/self_attention/query/kernel',
  ],
)
def test_a_model_that_cannot_be_told(name, tmp_path):
  flat = _flat()
  del flat[name]
  error = _error(t5x.load_config, _written(tmp_path, flat))
  name = name.replace('wi_0', 'wi')
  assert 'holds no T5 of T5X' in error and f'missing tensors: {name}.' in error


def test_misshapen_tensors_are_listed(tmp_path):
  flat = _flat()
  names = [name for name in flat if name.endswith('wo/kernel')]
  for name in names:
    flat[name] = np.ascontiguousarray(flat[name].T)
  error = _error(t5x.load_config, _written(tmp_path, flat))
  assert len(names) == 3
  for name in names:
    assert f'{name} has [8, 24] and should have [24, 8]' in error


@pytest.mark.parametrize('name', t5x_names.parameters(
  t5x.load_config(t5x_directories.LEGACY)
))  # fmt: skip
def test_any_matrix_the_wrong_way_round_is_an_error(name, tmp_path):
  flat = _flat()
  if flat[name].ndim == 1:
    flat[name] = np.zeros(flat[name].shape[0] + 1, np.float32)
  else:
    flat[name] = np.ascontiguousarray(flat[name].T)
  config = t5x.load_config(t5x_directories.LEGACY)
  assert _error(t5x.load_params, _written(tmp_path, flat), config)


@pytest.mark.parametrize(
  ('name', 'shape', 'message'),
  [
    ('token_embedder/embedding', (40,), 'should have 2 axes'),
    ('encoder/relpos_bias/rel_embedding', (4, 32, 1), 'should have 2 axes'),
    ('encoder/relpos_bias/rel_embedding', (3, 32), 'the 3 heads of tensor'),
  ],
)
def test_shapes_of_no_t5(name, shape, message, tmp_path):
  flat = _flat() | {name: np.ones(shape, np.float32)}
  error = _error(t5x.load_config, _written(tmp_path, flat))
  assert message in error and name in error


def test_quantised_weights_are_an_error(tmp_path):
  flat = _flat()
  flat[QUERY] = flat[QUERY].astype(np.int8)
  error = _error(t5x.load_config, _written(tmp_path, flat))
  assert f'tensor {QUERY} is int8; supported are' in error


def test_unsigned_numbers_are_bfloat16_in_version_2_alone(tmp_path):
  path = t5x_directories.copy(t5x_directories.BFLOAT16, tmp_path / 'x')
  t5x_directories.to_version_2(path)
  t5x_directories.edit_index(path, lambda c: c | {'version': 3})
  assert 'is uint16; supported are' in _error(t5x.load_config, path)


def test_a_model_of_another_architecture_is_described():
  config = dataclasses.replace(
    t5x.load_config(t5x_directories.LEGACY),
    emb_dim=32,
    mlp_activations=('relu',),
    logits_via_embedding=True,
  )
  error = _error(t5x.load_params, t5x_directories.LEGACY, config)
  assert 'emb_dim is 8 in the checkpoint and 32 in' in error
  assert 'logits_via_embedding is False in the checkpoint and True' in error
  assert 'the MLP is gated in the checkpoint and is not' in error
  assert 'num_heads' not in error


class TestKeyValueStore:
  @pytest.fixture
  def state(self, tmp_path):
    step = t5x_directories.copy(t5x_directories.ORBAX, tmp_path / 'x')
    return step / 'state'

  def test_damaged_metadata(self, state):
    path = state / '_METADATA'
    text = path.read_text()
    for damaged in (text[:-100], '[]', '{}', ''):
      path.write_text(damaged)
      assert f'{path} is damaged (' in _error(_load, state.parent)

  def test_missing_files(self, state):
    files = [path for path in state.rglob('d/*') if path.is_file()]
    assert files
    for path in files:
      path.unlink()
    error = _error(_load, state.parent)
    assert re.search('cannot be opened|are missing', error)
    (state / 'manifest.ocdbt').unlink()
    error = _error(_load, state.parent)
    assert 'lists tensors whose files are missing: decoder/' in error

  def test_truncated_files(self, state):
    for path in state.rglob('d/*'):
      if path.is_file():
        path.write_bytes(path.read_bytes()[:-20])
    assert 'Copy or download' in _error(_load, state.parent)

  def test_a_missing_tensor(self, state):
    path = state / '_METADATA'
    path.write_text(path.read_text().replace('"layers_1"', '"layers_9"'))
    error = _error(_load, state.parent)
    assert 'lists tensors whose files are missing: encoder/layers_9' in error


class TestSaving:
  @pytest.fixture
  def model(self):
    config = t5x.load_config(t5x_directories.LEGACY)
    return _load(t5x_directories.LEGACY), config

  def test_over_a_checkpoint_is_refused(self, model, tmp_path):
    step = t5x.save(*model, tmp_path, 7)
    before = sorted(path.name for path in tmp_path.rglob('*'))
    for number in (7, 8):
      assert 'already holds a T5X checkpoint; give another folder' in _error(
        t5x.save, *model, tmp_path, number
      )
    assert before == sorted(path.name for path in tmp_path.rglob('*'))
    assert 'token_embedder' in t5x.load_params(step, model[1])

  def test_over_anything_is_refused(self, model, tmp_path):
    (tmp_path / 'checkpoint_7').mkdir()
    assert 'already holds' in _error(t5x.save, *model, tmp_path, 7)
    assert not list((tmp_path / 'checkpoint_7').iterdir())

  def test_other_parameters_than_the_config_says(self, model, tmp_path):
    params, config = model
    path = tmp_path / 'x'
    flat = tree_paths.flatten(params)
    flat['extra/kernel'] = flat.pop('encoder/encoder_norm/scale')
    error = _error(t5x.save, tree_paths.unflatten(flat), config, path, 7)
    assert 'missing parameters: encoder/encoder_norm/scale;' in error
    assert 'unexpected parameters: extra/kernel.' in error
    flat = tree_paths.flatten(params)
    flat['encoder/encoder_norm/scale'] = np.ones(17, np.float32)
    error = _error(t5x.save, tree_paths.unflatten(flat), config, path, 7)
    assert 'parameter encoder/encoder_norm/scale has shape [17]' in error
    assert 'step is -1' in _error(t5x.save, *model, path, -1)
    assert not path.exists()

  def test_a_full_disk_leaves_nothing(self, model, tmp_path):
    # No file may be larger than the norms are, and smaller than matrices.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
      error = _error(t5x.save, *model, tmp_path / 'x', 7)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
      signal.signal(signal.SIGXFSZ, before)
    assert f'{tmp_path / "x" / "checkpoint_7"} cannot be written (' in error
    assert 'room' in error and not (tmp_path / 'x').exists()

  def test_an_interruption_leaves_nothing(self, model, tmp_path, monkeypatch):
    def interrupted(_):
      raise KeyboardInterrupt

    monkeypatch.setattr(serialization, 'msgpack_serialize', interrupted)
    with pytest.raises(KeyboardInterrupt):
      t5x.save(*model, tmp_path, 7)
    assert not list(tmp_path.iterdir())
