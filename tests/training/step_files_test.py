import dataclasses
import errno
import json
import logging
import math
import os
import shutil

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.models import lora
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import optimizers
from perlhf_jax.training import step_files
from perlhf_jax.training import train_state

METADATA = {'kind': 'reward', 'base': {'fingerprint': 'abc'}, 'ratio': 0.1}


def _state(step, tree=None):
  """A state with numbers that no rounding could have made."""
  rng = np.random.default_rng(step)
  tree = tree or {
    'lora': {'encoder': {'lora_a': rng.normal(size=(3, 2)).astype(np.float32)}},
    'heads': {'score': {'bias': np.array([1 / 3], np.float32)}},
    'half': jnp.asarray(rng.normal(size=4), jnp.bfloat16),
  }
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(), 10)
  state = train_state.create(jax.tree.map(jnp.asarray, tree), optimizer)
  return state.replace(step=jnp.asarray(step, jnp.int32))


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def _assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)

  def check(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
      np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8)
    )

  jax.tree.map(
    check,
    jax.tree.map(np.atleast_1d, actual),
    jax.tree.map(np.atleast_1d, expected),
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """MODEL_DIR of a run whose best steps are 2 and 3, and the newest 5."""
  folder = epath.Path(tmp_path_factory.mktemp('run'))
  manager = checkpoint_manager.CheckpointManager(
    folder, METADATA, keep_best=2, keep_latest=1
  )
  for step, metric in enumerate([0.5, 0.9, 0.7, 0.6, -math.inf], start=1):
    manager.save(_state(step), metric)
  manager.close()
  return folder


def test_the_best_and_the_newest_are_kept(run):
  steps = {p.name for p in (run / 'checkpoints').iterdir() if p.is_dir()}
  assert steps == {'2', '3', '5'}


def test_restore_is_exact(run):
  manager = checkpoint_manager.CheckpointManager(run, METADATA)
  assert manager.latest_step() == 5
  expected = _state(5)
  restored = manager.restore(5, _abstract(expected))
  _assert_same(restored, expected)
  manager.close()


def test_a_state_of_other_parts_is_refused(run):
  manager = checkpoint_manager.CheckpointManager(run, METADATA)
  other = _abstract(_state(5, {'lora': {'other': np.zeros(2, np.float32)}}))
  with pytest.raises(errors.CheckpointError, match='step 5 in MODEL_DIR has'):
    manager.restore(5, other)
  manager.close()


def test_relative_paths(run, monkeypatch):
  monkeypatch.chdir(run.parent)
  for path, step in ((run.name, '5'), (f'{run.name}/checkpoints/best', '2')):
    found = step_files.find_step(path)
    assert found == run / 'checkpoints' / step
    assert step_files.model_dir_of(found) == run
    assert set(step_files.read_trainable(found)) == {
      'lora',
      'heads',
      'half',
    }


def test_a_step_that_was_copied_out_is_its_own_model_dir(run, tmp_path):
  copy = epath.Path(tmp_path) / 'mine'
  shutil.copytree(run / 'checkpoints/5', copy)
  assert step_files.find_step(str(copy)) == copy
  assert step_files.model_dir_of(copy) == copy


def test_find_step(run):
  assert step_files.find_step(str(run)).name == '5'
  assert step_files.find_step(str(run / 'checkpoints/2')).name == '2'
  assert step_files.find_step(str(run / 'checkpoints/best')).name == '2'


def test_find_step_of_something_else(tmp_path):
  assert step_files.find_step(str(tmp_path)) is None
  assert step_files.find_step(str(tmp_path / 'missing')) is None
  (tmp_path / 'config.json').write_text('{}')
  assert step_files.find_step(str(tmp_path)) is None


def test_find_step_that_is_not_there(run, tmp_path):
  with pytest.raises(errors.CheckpointError, match='no complete step 4'):
    step_files.find_step(str(run / 'checkpoints/4'))
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(errors.CheckpointError, match='holds no complete step'):
    step_files.find_step(str(tmp_path))


def test_equally_good_steps_and_steps_without_a_metric(tmp_path, caplog):
  caplog.set_level(logging.WARNING)
  folder = epath.Path(tmp_path)
  manager = checkpoint_manager.CheckpointManager(folder, {}, keep_latest=9)
  manager.save(_state(1), None)
  manager.close()
  assert not caplog.records  # It is meant so, and no matter for a warning.
  with pytest.raises(errors.CheckpointError, match='none is the best'):
    step_files.find_step(str(folder / 'checkpoints/best'))
  manager = checkpoint_manager.CheckpointManager(folder, {}, keep_latest=9)
  for step in (2, 3):
    manager.save(_state(step), 0.5)
  manager.close()
  # Of equals the first: training longer did not help.
  assert step_files.find_step(str(folder / 'checkpoints/best')).name == '2'


def test_a_step_without_a_metric_takes_no_place_of_the_best(tmp_path):
  folder = epath.Path(tmp_path)
  for step, metric in ((1, 0.5), (2, None), (3, None)):
    # A run that is started anew each time.
    manager = checkpoint_manager.CheckpointManager(folder, {}, keep_latest=1)
    manager.save(_state(step), metric)
    manager.close()
  steps = {p.name for p in (folder / 'checkpoints').iterdir() if p.is_dir()}
  assert steps == {'1', '3'}
  assert step_files.find_step(str(folder / 'checkpoints/best')).name == '1'


def test_a_step_that_was_not_finished_is_ignored_and_made_again(tmp_path):
  folder = epath.Path(tmp_path)
  manager = checkpoint_manager.CheckpointManager(folder, METADATA)
  manager.save(_state(5), 0.5)
  manager.close()
  half = folder / 'checkpoints' / '9.orbax-checkpoint-tmp'
  (half / 'state').mkdir(parents=True)
  (half / 'metadata').mkdir()
  assert step_files.find_step(str(folder)).name == '5'
  assert step_files.find_step(str(folder / 'checkpoints/best')).name == '5'
  manager = checkpoint_manager.CheckpointManager(folder, METADATA)
  assert manager.latest_step() == 5
  manager.save(_state(9), 0.25)
  manager.close()
  assert not half.exists()
  step = step_files.find_step(str(folder))
  assert step.name == '9'
  expected = jax.tree.map(np.asarray, _state(9).trainable)
  _assert_same(step_files.read_trainable(step), expected)


def test_reading_without_the_configuration(run):
  step = step_files.find_step(str(run))
  assert step_files.read_metadata(step) == METADATA
  trainable = step_files.read_trainable(step)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(trainable))
  expected = jax.tree.map(np.asarray, _state(5).trainable)
  _assert_same(trainable, expected)


def test_a_save_is_not_disturbed_by_the_steps_after_it(tmp_path):
  folder = epath.Path(tmp_path)
  manager = checkpoint_manager.CheckpointManager(folder, {})
  tree = {'params': {'w': np.full((512, 512), 1.0, np.float32)}}
  state = _state(1, tree)
  advance = jax.jit(
    lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s),
    donate_argnums=0,
  )
  advance(_state(1, tree))  # Compiled: what follows is quick.
  manager.save(state, 0.0)
  for _ in range(20):
    state = advance(state)
  jax.block_until_ready(state)
  manager.close()
  saved = step_files.read_trainable(step_files.find_step(str(folder)))
  np.testing.assert_array_equal(saved['params']['w'], 1.0)


def _size(folder):
  return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())


def test_an_adapter_checkpoint_on_disk_is_small(tmp_path):
  config = dataclasses.replace(
    tiny_models.CONFIG, vocab_size=30_000, emb_dim=128
  )
  _, adapters = tiny_models.adapted(lora.LoraConfig(rank=1), config)
  trees = {
    'adapter': {'lora': adapters},
    'full': {'params': tiny_models.params(config)},
  }
  sizes = {}
  for name, tree in trees.items():
    folder = epath.Path(tmp_path) / name
    manager = checkpoint_manager.CheckpointManager(folder, METADATA)
    manager.save(_state(1, tree), 0.5)
    manager.close()
    sizes[name] = _size(tmp_path / name)
  assert sizes['adapter'] < 0.02 * sizes['full']


def test_prepare_model_dir(tmp_path):
  path = step_files.prepare_model_dir(str(tmp_path / 'a' / 'b'))
  assert path.is_dir()
  assert not list(path.iterdir())


def test_model_dir_that_cannot_be_written_to(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.CheckpointError) as error:
    step_files.prepare_model_dir(str(tmp_path / 'file' / 'run'))
  assert f'MODEL_DIR {tmp_path / "file" / "run"} cannot be' in str(error.value)
  assert 'Move it away, or choose another folder' in str(error.value)


def test_a_disk_that_is_read_only_is_said_to_be(tmp_path, monkeypatch):
  def refuse(path, *_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

  monkeypatch.setattr(type(epath.Path(tmp_path)), 'write_text', refuse)
  with pytest.raises(errors.CheckpointError) as error:
    step_files.prepare_model_dir(str(tmp_path))
  for wanted in str(tmp_path), 'the disk is read-only', 'Have it mounted for':
    assert wanted in str(error.value)


def test_metadata_is_plain_json_on_disk(run):
  text = (run / 'checkpoints/5/metadata/metadata').read_text()
  assert json.loads(text) == {**METADATA, 'digests': 'digests.json'}
