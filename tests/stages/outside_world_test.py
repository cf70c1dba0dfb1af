"""Disks, networks and other runs that get in the way of a training command.

The stage is a small one: the loop, the checkpoints and the records are real.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

from etils import epath
import jax
import jax.numpy as jnp
import metric_records
import numpy as np
import pytest
import runs

from perlhf_jax.core import errors
from perlhf_jax.runs import whole_run
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import metric_writer
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_state

_STEPS = 8
_CONFIG = train_loop.LoopConfig(
  train_steps=_STEPS, log_period=1, eval_period=4, checkpoint_period=4
)


class _Step:
  """A step that changes its state, at which something may happen."""

  newly_compiled = False
  memory_bytes = 7

  def __init__(self, happens):
    self._happens = happens

  def __call__(self, state, frozen, batch):
    self._happens(int(state.step) + 1)
    trainable = {'w': state.trainable['w'] * 0.9 + batch['x'].mean()}
    metrics = {'loss': jnp.sum(trainable['w']), 'grad_norm': jnp.ones(())}
    return state.replace(step=state.step + 1, trainable=trainable), metrics


def _batches(first):
  while True:
    x = np.random.default_rng(first).normal(size=(2, 3)).astype(np.float32)
    first += 1
    yield {'x': x}


@whole_run.guarded
def _train(*, model_dir, happens=lambda step: None):
  path = step_files.prepare_model_dir(model_dir)
  check = whole_run.hold(path)
  # Some kilobytes, whatever compresses them.
  w = np.random.default_rng(0).normal(size=3000).astype(np.float32)
  state = train_state.create(
    {'w': jnp.asarray(w)},
    optimizers.make_optimizer(optimizers.Optimizer('adamw'), _STEPS),
  )
  manager = checkpoint_manager.CheckpointManager(path, {'kind': 'test'})
  newest = manager.latest_step()
  if newest is not None:
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    state = manager.restore(newest, abstract)
  return train_loop.train(
    _CONFIG,
    model_dir=path,
    manager=manager,
    step=_Step(happens),
    state=state,
    frozen={},
    batches=_batches,
    batch_size=2,
    evaluate=lambda state: {'size': float(jnp.sum(state.trainable['w']))},
    selection=train_loop.Selection('size'),
    mesh=partitioning.make_mesh(),
    summary={'trainable_fraction': 1.0},
    still_ours=check,
  )


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
  """TensorFlow takes seconds to import, and writes no record of ours."""
  writer = types.SimpleNamespace(
    write_scalars=lambda *_: None, flush=lambda: None, close=lambda: None
  )
  clu = types.SimpleNamespace(
    metric_writers=types.SimpleNamespace(SummaryWriter=lambda _: writer)
  )
  monkeypatch.setitem(sys.modules, 'clu', clu)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An undisturbed run, without TensorBoard either."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  with pytest.MonkeyPatch.context() as patched:
    no_tensorboard.__wrapped__(patched)
    state = _train(model_dir=str(folder))
  return folder, np.asarray(state.trainable['w'])


def _locks(folder):
  return [p.name for p in folder.iterdir() if 'lock' in p.name]


def _at(step, act):
  return lambda now: act() if now == step else None


def _wait_for_step(folder, step):
  deadline = time.monotonic() + 60
  while not (folder / 'checkpoints' / str(step)).exists():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def _raising(number):
  def act(self, *_):
    raise OSError(number, os.strerror(number), str(self._path))

  return act


@pytest.mark.parametrize(
  ('number', 'code', 'what'),
  [
    (errno.ENOSPC, 2, 'The disk is full'),
    (errno.EROFS, 2, 'The disk is read-only'),
    (errno.EACCES, 2, 'Permission is denied'),
    (errno.ESTALE, 75, 'did not answer'),
    (errno.EIO, 75, 'input/output error'),
  ],
)
def test_records_that_cannot_be_written(
  number, code, what, whole, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  with monkeypatch.context() as patched:

    def fail():
      patched.setattr(
        metric_writer.step_log.StepLog, 'append', _raising(number)
      )

    with pytest.raises(errors.OutsideError) as error:
      _train(model_dir=str(folder), happens=_at(6, fail))
  message = str(error.value)
  assert what in message and str(folder / 'metrics.jsonl') in message
  assert f'Step 4 is kept in MODEL_DIR {folder}' in message
  assert error.value.exit_code == code
  assert not _locks(folder)
  _goes_on(folder, whole)


def _goes_on(folder, whole):
  """A second start ends as an undisturbed run does."""
  state = _train(model_dir=str(folder))
  np.testing.assert_array_equal(state.trainable['w'], whole[1])
  assert metric_records.without_timing(folder) == (
    metric_records.without_timing(whole[0])
  )
  assert json.loads((folder / 'summary.json').read_text())['steps'] == _STEPS
  assert not _locks(folder)


def test_a_checkpoint_that_really_finds_no_room(whole, tmp_path):
  """The limit of a file's size is what TensorStore meets in earnest."""
  folder = tmp_path / 'run'
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit():
    _wait_for_step(folder, 4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))

  try:
    with pytest.raises(errors.OutsideError) as error:
      _train(model_dir=str(folder), happens=_at(7, limit))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  message = str(error.value)
  assert 'A file exceeds the size limit there' in message
  assert 'Step 4 is kept' in message
  assert step_files.newest_step(epath.Path(folder)).name == '4'
  assert not (folder / 'summary.json').exists()
  _goes_on(folder, whole)


@pytest.mark.parametrize('step', [2, 6, _STEPS])
def test_a_folder_that_is_removed_meanwhile(step, tmp_path):
  folder = tmp_path / 'run'

  def remove():
    if step > 4:
      _wait_for_step(folder, 4)
    shutil.rmtree(folder)

  with pytest.raises(errors.OutsideError) as error:
    _train(model_dir=str(folder), happens=_at(step, remove))
  assert f'MODEL_DIR {folder} is gone' in str(error.value)
  assert not folder.exists()


def test_a_folder_that_is_removed_at_the_end(tmp_path):
  """Orbax makes it anew, and would end well with half of the files."""
  folder = tmp_path / 'run'
  save = checkpoint_manager.CheckpointManager.save

  def remove_and_save(self, state, metric):
    if int(state.step) == _STEPS:
      _wait_for_step(folder, 4)
      shutil.rmtree(folder)
    save(self, state, metric)

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(
      checkpoint_manager.CheckpointManager, 'save', remove_and_save
    )
    with pytest.raises(errors.OutsideError) as error:
      _train(model_dir=str(folder))
  assert str(folder) in str(error.value)
  assert not (folder / 'summary.json').exists()


def test_a_folder_that_is_renamed_goes_on_when_it_is_back(whole, tmp_path):
  folder, away = tmp_path / 'run', tmp_path / 'away'

  with pytest.raises(errors.OutsideError, match=r'is gone|was deleted'):
    _train(model_dir=str(folder), happens=_at(6, lambda: folder.rename(away)))
  # Threads of Orbax may still make a part of it anew.
  for _ in range(100):
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
      away.rename(folder)
      break
    time.sleep(0.1)
  assert not away.exists()
  _goes_on(folder, whole)


def test_a_clock_that_is_set_forward_in_a_save(whole, tmp_path, monkeypatch):
  real, jumped = time.time, []
  folder = tmp_path / 'run'
  with monkeypatch.context() as patched:

    def jump():
      # Once a save has begun, which looks at the clock now and then.
      patched.setattr(time, 'time', lambda: real() + 1200 * len(jumped))
      jumped.append(1)

    state = _train(model_dir=str(folder), happens=lambda step: jump())
  assert len(jumped) == _STEPS
  np.testing.assert_array_equal(state.trainable['w'], whole[1])


def test_a_second_run_is_refused_before_it_does_anything(whole, tmp_path):
  folder = tmp_path / 'run'
  refused = []

  def start_again():
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*.jsonl')}
    with pytest.raises(errors.CheckpointError) as error:
      _train(model_dir=str(folder), happens=lambda _: refused.append('works'))
    refused.append(str(error.value))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*.jsonl')} == before

  state = _train(model_dir=str(folder), happens=_at(5, start_again))
  (message,) = refused
  assert f'process {os.getpid()} on the host' in message
  np.testing.assert_array_equal(state.trainable['w'], whole[1])
  assert not _locks(folder)


def test_a_run_that_was_taken_over_stops(tmp_path):
  folder = tmp_path / 'run'

  def take_over():
    for name in _locks(folder):
      (folder / name).unlink()
    (folder / 'lock-other-1-a.json').write_text('{}')

  with pytest.raises(errors.OutsideError, match='taken over by another run'):
    _train(model_dir=str(folder), happens=_at(6, take_over))
  assert [r['step'] for r in metric_records.read(folder)][-1] == 5


@pytest.mark.parametrize('damage', ['NULs', 'half a line', 'no step'])
def test_damaged_records_do_not_stop_a_resume(damage, tmp_path, caplog):
  folder = tmp_path / 'run'
  with pytest.raises(ZeroDivisionError):
    _train(model_dir=str(folder), happens=_at(7, lambda: 1 / 0))
  path = folder / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  lines[1] = {
    'NULs': b'\0' * len(lines[1]) + b'\n',
    'half a line': lines[1][:20] + b'\n',
    'no step': b'{"loss": 1.0}\n',
  }[damage]
  path.write_bytes(b''.join(lines))
  _train(model_dir=str(folder))
  steps = [r['step'] for r in metric_records.read(folder)]
  assert steps == [1, 3, 4, 4, 5, 6, 7, 8, 8]
  assert f'{path}: line 2 cannot be read' in caplog.text


@pytest.mark.parametrize('left', [None, '', '{"steps": 8', '\0\0\0'])
def test_a_summary_that_was_lost_is_written_again(
  left, whole, tmp_path, caplog
):
  caplog.set_level(logging.WARNING)
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  path = folder / 'summary.json'
  before = json.loads(path.read_text())
  records = (folder / 'metrics.jsonl').read_bytes()
  path.unlink()
  if left is not None:
    path.write_text(left)
  _train(model_dir=str(folder))
  after = json.loads(path.read_text())
  assert list(after) == list(before)
  assert after['steps'] == _STEPS and after['trainable_fraction'] == 1.0
  timed = [
    r['seconds_per_step']
    for r in metric_records.read(folder)
    if r.get('seconds_per_step') is not None
  ]
  assert after['seconds_per_step'] == pytest.approx(np.mean(timed))
  for unknown in 'step_memory_bytes', 'devices', 'device_kind':
    assert after[unknown] is None
  assert f'{path} was lost' in caplog.text
  assert (folder / 'metrics.jsonl').read_bytes() == records


def test_sigterm_before_the_first_step(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  arguments = runs.arguments('train_sft', 'none', tmp_path / 'run', 'demo_sft')
  with subprocess.Popen(
    [sys.executable, '-m', 'perlhf_jax', *arguments],
    cwd=root,
    env={**os.environ, 'PYTHONPATH': str(root)},
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    # While libraries are imported, which no handler of Python interrupts.
    maps = pathlib.Path(f'/proc/{process.pid}/maps')
    while 'jaxlib' not in maps.read_text():
      assert process.poll() is None
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
  assert process.returncode == 75
  assert err.splitlines()[-1].startswith('perlhf: stopped by SIGTERM. ')
  assert 'Traceback' not in err
