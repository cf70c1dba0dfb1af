"""Weights & Biases, with a module in its place that records calls."""

import contextlib
import json
import math
import sys
import types

from etils import epath
import jax
import pytest

from perlhf_jax.core import errors
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import metric_writer
from perlhf_jax.training import multihost
from perlhf_jax.training import progress
from perlhf_jax.training import train_loop
from perlhf_jax.training import wandb_writer

_CONFIG = """
from perlhf_jax.models import lora

RATE = 0.01
LEARNING_RATE = %RATE
LORA = @lora.LoraConfig()
LORA_ALPHA = None
MODEL_DIR = 'runs/rm'
MESH_SHAPE = (-1, 1, 1)

lora.LoraConfig.alpha = %LORA_ALPHA
"""


class _Run:
  """The functions of a run that are called; each may fail."""

  def __init__(self, calls, fails):
    self._calls, self._fails = calls, fails

  def _record(self, name, value):
    self._calls.append((name, value))
    if name in self._fails:
      raise ConnectionError('the service is away')

  def define_metric(self, name, step_metric=None):
    self._record('define_metric', (name, step_metric))

  def log(self, data):
    self._record('log', data)

  def finish(self, exit_code=None):
    self._record('finish', exit_code)


@pytest.fixture
def service(monkeypatch):
  """Stands in for W&B; returns its calls and what shall fail."""
  calls, fails = [], set()

  def init(**arguments):
    calls.append(('init', arguments))
    if 'init' in fails:
      raise ValueError('no API key')
    return _Run(calls, fails)

  module = types.ModuleType('wandb')
  module.init = init
  module.Settings = lambda **fields: fields
  module.setup = lambda settings: calls.append(('setup', settings))
  monkeypatch.setitem(sys.modules, 'wandb', module)
  monkeypatch.delenv('WANDB_PROJECT', raising=False)
  clu = types.SimpleNamespace(
    metric_writers=types.SimpleNamespace(
      SummaryWriter=lambda _: types.SimpleNamespace(
        write_scalars=lambda *_: None, flush=lambda: None, close=lambda: None
      )
    )
  )
  monkeypatch.setitem(sys.modules, 'clu', clu)
  return calls, fails


@pytest.fixture
def folder(tmp_path):
  path = epath.Path(tmp_path) / 'my runs' / 'rm'
  path.mkdir(parents=True)
  (path / 'config.gin').write_text(_CONFIG)
  return path


def _write(folder, steps, first=0):
  writer = metric_writer.MetricWriter(folder, first, wandb=True)
  for step in steps:
    writer.write(step, 'train', {'loss': 1.0 / step, 'gap': math.nan})
    writer.write(step, 'eval', {'roc_auc': 0.5})
  writer.close()


def test_metrics_with_step_and_split(service, folder):
  calls, _ = service
  _write(folder, [10])
  setup, (_, init), *rest = calls
  # Without it, a question for an account waits without end.
  assert setup == ('setup', {'login_timeout': 30})
  assert init == {
    'project': 'my-runs',
    'name': 'rm',
    'id': (folder / 'wandb_id.txt').read_text().strip(),
    'resume': 'allow',
    'config': {
      'RATE': 0.01,
      'LEARNING_RATE': 0.01,
      'LORA': '@lora.LoraConfig()',
      'LORA_ALPHA': None,
      'MODEL_DIR': 'runs/rm',
      'MESH_SHAPE': '(-1, 1, 1)',
      'config.gin': _CONFIG,
    },
    'dir': str(folder),
    'settings': {'console': 'off', 'finish_timeout': 60},
  }
  assert rest == [
    ('define_metric', ('train/*', 'step')),
    ('define_metric', ('eval/*', 'step')),
    ('log', {'train/loss': 0.1, 'step': 10}),
    ('log', {'eval/roc_auc': 0.5, 'step': 10}),
    ('finish', 0),
  ]


class _Manager(checkpoint_manager.CheckpointManager):
  """Checkpoints that record when they are waited for; a save may fail."""

  def __init__(self, calls, error=None):
    self._calls, self._error = calls, error

  def close(self):
    self._calls.append(('saved', None))
    if self._error is not None:
      raise self._error


class _Progress(progress.Progress):
  def __init__(self):
    pass

  def close(self):
    pass


@pytest.mark.parametrize(
  ('error', 'of_save', 'raised', 'code'),
  [
    (None, None, None, 0),
    (errors.UserError('diverged'), None, 'diverged', 1),
    (errors.PreemptedError('stopped'), None, 'stopped', 1),
    (None, OSError('full'), 'full', 1),
    (errors.PreemptedError('stopped'), OSError('full'), 'full', 1),
    (errors.UserError('diverged'), OSError('full'), 'diverged', 1),
  ],
)
def test_saves_are_waited_for_first_and_failures_are_told(
  service, folder, error, of_save, raised, code
):
  calls, _ = service
  writer = metric_writer.MetricWriter(folder, 0, wandb=True)
  calls.clear()
  manager = _Manager(calls, of_save)
  expected = contextlib.nullcontext()
  if raised is not None:
    expected = pytest.raises(Exception, match=raised)
  with expected, train_loop._closing(manager, writer, _Progress()):
    if error is not None:
      raise error
  assert calls == [('saved', None), ('finish', code)]


def test_a_process_that_fails_alone_waits_for_no_save(
  service, folder, monkeypatch
):
  calls, _ = service
  writer = metric_writer.MetricWriter(folder, 0, wandb=True)
  calls.clear()
  monkeypatch.setattr(multihost, 'is_alone', lambda: False)
  with (
    pytest.raises(errors.UserError),
    train_loop._closing(_Manager(calls), writer, _Progress()),
  ):
    raise errors.UserError('here only')
  assert calls == [('finish', 1)]


def test_a_resumed_run_goes_on_in_its_own(service, folder):
  calls, _ = service
  _write(folder, [10, 20])
  _write(folder, [20, 30], first=10)
  other = folder.parent / 'other'
  other.mkdir()
  _write(other, [10])
  first, again, third = (c[1]['id'] for c in calls if c[0] == 'init')
  assert first == again != third


def test_projects_have_names_of_folders(service, folder, monkeypatch):
  calls, _ = service
  for path, project in (
    ('gs://bucket/sweeps/rank 8/seed_0', 'rank-8'),
    ('/rm', 'perlhf'),
  ):
    assert wandb_writer.project_of(epath.Path(path)) == project
  monkeypatch.setenv('WANDB_PROJECT', 'given')
  _write(folder, [])
  assert calls[1][1]['project'] == 'given'


@pytest.mark.parametrize('what', ['init', 'define_metric', 'log', 'finish'])
def test_a_failing_service_is_one_warning(service, folder, caplog, what):
  calls, fails = service
  fails.add(what)
  with caplog.at_level('WARNING'):
    _write(folder, [10, 20, 30])
  warned = [r for r in caplog.records if 'Weights & Biases' in r.getMessage()]
  assert len(warned) == 1
  assert 'WANDB_MODE=offline' in warned[0].getMessage()
  assert calls[-1][0] == what and calls.count(calls[-1]) == 1
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [
    10,
    10,
    20,
    20,
    30,
    30,
  ]


def test_other_hosts_write_nothing(service, folder, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  _write(folder, [10])
  assert service[0] == [] and not (folder / 'wandb_id.txt').exists()


def test_it_is_off_unless_asked_for(service, folder):
  assert not train_loop.LoopConfig(train_steps=1).wandb
  metric_writer.MetricWriter(folder, 0).close()
  assert service[0] == []


# Not installed; and a folder `wandb` of earlier runs, which can be imported.
@pytest.mark.parametrize('found', [None, types.ModuleType('wandb')])
def test_without_wandb_the_error_names_the_extra(found, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', found)
  with pytest.raises(errors.ConfigError, match=r'perlhf-jax\[wandb\]'):
    wandb_writer.load()
