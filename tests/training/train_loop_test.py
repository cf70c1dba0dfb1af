import json
import math
import os
import signal
import time

from etils import epath
import jax
import jax.numpy as jnp
import metric_records
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import compiled_step
from perlhf_jax.training import metric_writer
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step

METADATA = {'kind': 'test'}


@pytest.fixture(scope='module')
def compiled():
  """A linear regression's training step, compiled once for all tests."""
  optimizer = optimizers.make_optimizer(
    optimizers.Optimizer(name='adamw', learning_rate=0.1), 10
  )

  def loss(trainable, frozen, batch, rng):
    noise = 0.01 * jax.random.normal(rng, ())
    error = batch['x'] @ trainable['w'] + frozen['b'] + noise - batch['y']
    return train_step.LossOutput(jnp.sum(error**2), jnp.float32(error.size), {})

  mesh = partitioning.make_mesh()
  step = compiled_step.CompiledStep(
    train_step.make_train_step(
      train_step.gradients_of(loss),
      optimizer,
      lambda step: 0.1 + 0 * step,
      seed=0,
    ),
    mesh,
    name='a step',
    donate_argnums=(0,),
  )
  return optimizer, step, mesh


def _batches(first, bad_step=None):
  """Batches are a function of the step; `bad_step` holds a NaN."""
  step = first
  while True:
    rng = np.random.default_rng(step)
    step += 1
    x = rng.normal(size=(4, 3)).astype(np.float32)
    y = x @ np.array([1, 2, 3], np.float32)
    if step == bad_step:
      y[0] = np.nan
    yield {'x': x, 'y': y}


def _evaluate(state):
  error = np.asarray(state.trainable['w']) - np.array([1, 2, 3])
  return {'distance': float(np.linalg.norm(error)), 'undefined': math.nan}


def _train(
  folder, compiled, config, batches=_batches, evaluate=_evaluate, check=None
):
  optimizer, step, mesh = compiled
  state = train_state.create({'w': jnp.zeros(3)}, optimizer)
  manager = checkpoint_manager.CheckpointManager(
    folder, METADATA, keep_best=config.keep_best
  )
  latest = manager.latest_step()
  if latest is not None:
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    state = manager.restore(latest, abstract)
  return train_loop.train(
    config,
    model_dir=folder,
    manager=manager,
    step=step,
    state=state,
    frozen={'b': jnp.zeros(())},
    batches=batches,
    batch_size=4,
    evaluate=evaluate,
    check=check,
    selection=train_loop.Selection('distance', maximize=False),
    mesh=mesh,
    summary={'trainable_fraction': 0.25},
  )


CONFIG = train_loop.LoopConfig(
  train_steps=9, log_period=2, eval_period=3, checkpoint_period=4
)


@pytest.fixture(scope='module')
def whole(compiled, tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp('whole'))
  state = _train(folder, compiled, CONFIG)
  return folder, np.asarray(state.trainable['w'])


_records = metric_records.read


def test_periods(whole):
  folder, _ = whole
  steps = {'train': [], 'eval': []}
  for record in _records(folder):
    steps[record['split']].append(record['step'])
  assert steps == {'train': [2, 4, 6, 8, 9], 'eval': [3, 4, 6, 8, 9]}
  saved = {p.name for p in (folder / 'checkpoints').iterdir() if p.is_dir()}
  # The last is the newest and the best; two are kept beside it.
  assert saved == {'4', '8', '9'}


def test_records(whole):
  folder, _ = whole
  train, evaluation = _records(folder)[:2]
  metrics = ['loss', 'grad_norm', 'learning_rate']
  assert list(train) == ['step', 'split', *metrics, *metric_writer.TIMING]
  assert evaluation['undefined'] is None
  distances = [r['distance'] for r in _records(folder) if r['split'] == 'eval']
  assert distances == sorted(distances, reverse=True)


def test_summary(whole, compiled):
  folder, _ = whole
  summary = json.loads((folder / 'summary.json').read_text())
  assert summary['steps'] == 9
  assert summary['trainable_fraction'] == 0.25
  assert summary['examples_per_second'] > 0
  assert summary['step_memory_bytes'] == compiled[1].memory_bytes > 0


class _Killed(Exception):
  pass


@pytest.mark.parametrize('killed_at', [3, 7])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
  killed_at, whole, compiled, tmp_path
):
  def dying(first):
    for index, batch in enumerate(_batches(first), start=first):
      if index == killed_at:
        raise _Killed
      yield batch

  folder = epath.Path(tmp_path)
  with pytest.raises(_Killed):
    _train(folder, compiled, CONFIG, dying)
  state = _train(folder, compiled, CONFIG)
  expected_folder, expected = whole
  np.testing.assert_array_equal(state.trainable['w'], expected)
  assert metric_records.without_timing(folder) == (
    metric_records.without_timing(expected_folder)
  )


def test_a_finished_run_is_left_as_it_is(whole, compiled):
  folder, expected = whole
  before = {
    name: (folder / name).read_bytes()
    for name in ('metrics.jsonl', 'summary.json')
  }
  state = _train(folder, compiled, CONFIG)
  np.testing.assert_array_equal(state.trainable['w'], expected)
  for name, content in before.items():
    assert (folder / name).read_bytes() == content


def test_a_loss_that_is_no_number_stops(compiled, tmp_path):
  folder = epath.Path(tmp_path)
  with pytest.raises(errors.UserError) as error:
    _train(folder, compiled, CONFIG, lambda first: _batches(first, bad_step=6))
  message = str(error.value)
  assert message.startswith('The loss at step 6 is nan')
  assert 'LEARNING_RATE' in message
  assert step_files.find_step(str(folder)).name == '4'
  assert _records(folder)[-1]['loss'] is None


def test_a_diverged_step_is_never_saved(compiled, tmp_path):
  # Step 4 is saved and not logged.
  config = train_loop.LoopConfig(
    train_steps=9, log_period=9, eval_period=9, checkpoint_period=2
  )
  folder = epath.Path(tmp_path)
  with pytest.raises(errors.UserError, match='The loss at step 4 is nan'):
    _train(folder, compiled, config, lambda first: _batches(first, bad_step=4))
  assert step_files.find_step(str(folder)).name == '2'


def test_metrics_are_checked_at_records_and_before_evaluations(
  compiled, tmp_path
):
  seen = []

  def check(step, metrics):
    seen.append(step)
    assert set(metrics) == {'loss', 'grad_norm', 'learning_rate'}
    assert all(isinstance(value, float) for value in metrics.values())

  _train(epath.Path(tmp_path), compiled, CONFIG, check=check)
  assert seen == [2, 3, 4, 6, 8, 9]


def test_a_check_that_fails_stops_before_the_checkpoint(compiled, tmp_path):
  def check(step, metrics):
    if step == 8:
      raise errors.UserError('enough')

  folder = epath.Path(tmp_path)
  with pytest.raises(errors.UserError, match='enough'):
    _train(folder, compiled, CONFIG, check=check)
  assert step_files.find_step(str(folder)).name == '4'
  assert _records(folder)[-1]['step'] == 8


class _Refusing:
  """A step that cannot use one of the batches."""

  def __init__(self, step, refused):
    self._step = step
    self._refused = refused
    self._calls = 0

  def __call__(self, state, frozen, batch):
    if int(state.step) + 1 == self._refused:
      raise errors.DataError(f'cannot use the batch of step {self._refused}')
    return self._step(state, frozen, batch)

  def __getattr__(self, name):
    return getattr(self._step, name)


@pytest.mark.parametrize(
  ('refused', 'saved'),
  [(7, 6), (5, 4), (1, None)],  # Step 4 is saved anyway; step 0 is nothing.
)
def test_an_error_of_the_step_loses_nothing(
  refused, saved, whole, compiled, tmp_path
):
  optimizer, step, mesh = compiled
  folder = epath.Path(tmp_path)
  refusing = optimizer, _Refusing(step, refused), mesh
  for _ in range(2):  # Trying again without a remedy changes nothing.
    with pytest.raises(errors.DataError, match=f'of step {refused}'):
      _train(folder, refusing, CONFIG)
    steps = [p.name for p in (folder / 'checkpoints').iterdir() if p.is_dir()]
    assert max(map(int, steps), default=None) == saved
  state = _train(folder, compiled, CONFIG)
  expected_folder, expected = whole
  np.testing.assert_array_equal(state.trainable['w'], expected)
  assert metric_records.without_timing(folder) == (
    metric_records.without_timing(expected_folder)
  )


def _telling(told_before):
  """Batches, with SIGTERM before one of the steps."""

  def batches(first):
    for index, batch in enumerate(_batches(first), start=first):
      if index + 1 == told_before:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # Another thread notes it.
      yield batch

  return batches


# 5 is neither recorded nor evaluated, 6 is both; 3 is evaluated, 8 saved too.
@pytest.mark.parametrize('step', [1, 3, 5, 6, 8])
def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been(
  step, whole, compiled, tmp_path
):
  folder = epath.Path(tmp_path)
  handler = signal.getsignal(signal.SIGTERM)
  with pytest.raises(errors.PreemptedError) as error:
    _train(folder, compiled, CONFIG, _telling(step))
  saved = f'step {step} is saved in {folder}.'
  assert str(error.value).startswith(f'stopped by SIGTERM; {saved}')
  assert step_files.find_step(str(folder)).name == str(step)
  best = folder / 'checkpoints' / 'best'
  if step in (5, 6):  # They were not to be saved, so they cannot be the best.
    assert step_files.find_step(str(best)).name == '4'
  assert not (folder / 'summary.json').exists()
  assert signal.getsignal(signal.SIGTERM) == handler
  state = _train(folder, compiled, CONFIG)
  expected_folder, expected = whole
  np.testing.assert_array_equal(state.trainable['w'], expected)
  assert metric_records.without_timing(folder) == (
    metric_records.without_timing(expected_folder)
  )
  saved = {p.name for p in (folder / 'checkpoints').iterdir() if p.is_dir()}
  # The best, which is the last, and the two before it.
  assert saved == {str(s) for s in sorted({4, 8, 9, step})[-3:]}


def test_sigterm_before_the_last_step_lets_it_finish(whole, compiled, tmp_path):
  folder = epath.Path(tmp_path)
  state = _train(folder, compiled, CONFIG, _telling(9))
  np.testing.assert_array_equal(state.trainable['w'], whole[1])
  assert (folder / 'summary.json').exists()


def test_a_diverged_step_is_not_saved_on_sigterm(compiled, tmp_path):
  def batches(first):
    told = _telling(5)(first)
    for index, batch in enumerate(told, start=first):
      if index + 1 == 5:
        batch['y'][0] = np.nan
      yield batch

  folder = epath.Path(tmp_path)
  with pytest.raises(errors.UserError, match='The loss at step 5 is nan'):
    _train(folder, compiled, CONFIG, batches)
  assert step_files.find_step(str(folder)).name == '4'


def test_an_error_of_the_evaluation_loses_nothing(whole, compiled, tmp_path):
  def evaluate(state):
    if int(state.step) == 6:
      raise errors.DataError('the judge is out')
    return _evaluate(state)

  folder = epath.Path(tmp_path)
  with pytest.raises(errors.DataError, match='the judge is out'):
    _train(folder, compiled, CONFIG, evaluate=evaluate)
  assert step_files.find_step(str(folder)).name == '6'
  # It was not measured, so that it cannot be the best.
  best = folder / 'checkpoints' / 'best'
  assert step_files.find_step(str(best)).name == '4'
  state = _train(folder, compiled, CONFIG)
  np.testing.assert_array_equal(state.trainable['w'], whole[1])
  evaluated = [r['step'] for r in _records(folder) if r['split'] == 'eval']
  assert evaluated == [3, 4, 8, 9]


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('train_steps', 0),
    ('log_period', 0),
    ('eval_period', -1),
    ('checkpoint_period', 0),
    ('accumulation_steps', 0),
    ('keep_best', -1),
  ],
)
def test_bad_lengths(field, value):
  with pytest.raises(errors.ConfigError) as error:
    train_loop.LoopConfig(**{'train_steps': 1, field: value})
  assert f'LoopConfig.{field} is {value}; it must be' in str(error.value)


def test_selection():
  more = train_loop.Selection('auc')
  less = train_loop.Selection('loss', maximize=False)
  assert more.value({'auc': 0.5}) == 0.5
  assert less.value({'loss': 0.5}) == -0.5
  assert more.value({'auc': math.nan}) == -math.inf
  assert less.value({'loss': math.inf}) == -math.inf
