"""Starting a run again says what is not as it was, and loses no record."""

import dataclasses
import logging

from etils import epath
import gin
import jax
import jax.numpy as jnp
import pytest
import tiny_metadata

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.runs import model_dirs
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import optimizers
from perlhf_jax.training import train_state

METADATA = tiny_metadata.METADATA
FIELDS = run_metadata.to_json(METADATA)
# In another order than gin's own, with a comment.
CONFIG = '# Mine.\nTRAIN_STEPS = 4\nLEARNING_RATE = 0.001\n'


def _state(step, optimizer='adamw'):
  config = optimizers.Optimizer(name=optimizer)
  transformation = optimizers.make_optimizer(config, 10)
  state = train_state.create({'w': jnp.zeros(3)}, transformation)
  return state.replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture(autouse=True)
def log(caplog):
  caplog.set_level(logging.INFO)
  yield caplog
  gin.clear_config()


@pytest.fixture
def folder(tmp_path):
  """A MODEL_DIR of step 4."""
  manager = checkpoint_manager.CheckpointManager(epath.Path(tmp_path), FIELDS)
  manager.save(_state(4), 0.5)
  manager.close()
  (tmp_path / 'config.gin').write_text(CONFIG)
  return tmp_path


def _resume(folder, train_steps, config, state=None, metadata=METADATA):
  """Starts again as a stage does; gives the state to go on from."""
  gin.clear_config()
  gin.parse_config(config)
  run_dir = model_dirs.prepare(str(folder), train_steps)
  run_dir.described(metadata, accept_changes=False)
  manager = checkpoint_manager.CheckpointManager(run_dir.path, FIELDS)
  state = _state(0) if state is None else state
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  try:
    return run_dir.resume(manager, state, shardings)
  finally:
    manager.close()


def test_a_new_run_writes_its_configuration(tmp_path):
  state = _resume(tmp_path / 'new', 4, CONFIG)
  assert int(state.step) == 0
  text = (tmp_path / 'new/config.gin').read_text()
  assert operative_config.changes(text, CONFIG) == {}
  assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == [
    'checkpoints',
    'config.gin',
  ]


def test_fewer_steps_than_there_are_are_refused(folder):
  with pytest.raises(errors.CheckpointError) as error:
    model_dirs.prepare(str(folder), 3)
  assert f'TRAIN_STEPS is 3, but MODEL_DIR {folder} already holds step 4' in (
    str(error.value)
  )


def test_the_same_configuration_changes_nothing(folder, log):
  state = _resume(folder, 4, CONFIG)
  assert int(state.step) == 4
  assert (folder / 'config.gin').read_text() == CONFIG
  assert 'Changed' not in log.text and 'Going on' not in log.text


def test_a_finished_run_keeps_its_configuration(folder, log):
  _resume(folder, 4, CONFIG.replace('0.001', '0.01'))
  assert (folder / 'config.gin').read_text() == CONFIG
  assert not list(folder.glob('config-*'))
  assert 'The run finished at step 4, before this was changed:\n' in log.text
  assert '  LEARNING_RATE: 0.001 -> 0.01' in log.text


def test_what_changes_is_named_and_what_was_is_kept(folder, log):
  config = CONFIG.replace('0.001', '0.01').replace('= 4', '= 6')
  _resume(folder, 6, config)
  assert 'Going on from step 4 to step 6.' in log.text
  levels = {r.getMessage(): r.levelname for r in log.records}
  assert levels['Changed since the last start: TRAIN_STEPS: 4 -> 6.'] == 'INFO'
  (warning,) = (m for m, level in levels.items() if level == 'WARNING')
  assert (
    'The configuration changes at step 4' in warning
    and 'config-4.gin' in warning
  )
  assert warning.endswith('\n  LEARNING_RATE: 0.001 -> 0.01')
  assert (folder / 'config-4.gin').read_text() == CONFIG
  text = (folder / 'config.gin').read_text()
  assert operative_config.changes(text, config) == {}
  # Started once more before another step was saved.
  _resume(folder, 6, config.replace('0.01', '0.1'))
  assert (folder / 'config-4.gin').read_text() == CONFIG
  assert 'LEARNING_RATE = 0.1' in (folder / 'config.gin').read_text()


def test_another_run_is_refused_and_nothing_written(folder):
  other = dataclasses.replace(METADATA, objective='grpo')
  changed = CONFIG.replace('0.001', '0.01')
  with pytest.raises(errors.CheckpointError, match='objective is rloo'):
    _resume(folder, 6, changed, metadata=other)
  assert (folder / 'config.gin').read_text() == CONFIG


def test_a_state_with_a_nan_is_refused_by_parameter(tmp_path):
  manager = checkpoint_manager.CheckpointManager(epath.Path(tmp_path), FIELDS)
  bad = _state(4)
  manager.save(bad.replace(trainable={'w': jnp.array([0, jnp.nan, 1])}), 0.5)
  manager.close()
  with pytest.raises(
    errors.CheckpointError, match=r'Step 4 in .* trainable/w \(1\)'
  ):
    _resume(tmp_path, 6, CONFIG)
  assert not (tmp_path / 'config.gin').exists()


def test_another_optimizer_is_refused_and_named(folder, log):
  changed = CONFIG + "NAME = 'adafactor'\n"
  with pytest.raises(errors.CheckpointError, match='optimizer was changed'):
    _resume(folder, 6, changed, state=_state(0, 'adafactor'))
  assert "NAME: not set -> 'adafactor'" in log.text
  assert (folder / 'config.gin').read_text() == CONFIG
  assert not list(folder.glob('config-*'))


def test_a_start_that_saved_nothing_is_replaced_and_said(tmp_path, log):
  (tmp_path / 'config.gin').write_text(CONFIG)
  _resume(tmp_path, 4, CONFIG.replace('0.001', '0.01'))
  assert 'LEARNING_RATE: 0.001 -> 0.01' in log.text
  assert 'saved no step' in log.text
  assert 'LEARNING_RATE = 0.01' in (tmp_path / 'config.gin').read_text()
  assert not list(tmp_path.glob('config-*'))


def test_a_damaged_configuration_is_named(folder):
  (folder / 'config.gin').write_text('LEARNING_RATE = (1,')
  with pytest.raises(errors.CheckpointError, match='cannot be read as gin'):
    _resume(folder, 6, CONFIG)
