"""Other settings, damaged files and odd runs, of a small sweep."""

import json

from etils import epath
import pytest
import ram_bucket
from small_sweeps import ALL
from small_sweeps import EVALUATED
from small_sweeps import KILLED
from small_sweeps import Runs
from small_sweeps import make
from small_sweeps import printed
from small_sweeps import read
from small_sweeps import start

from perlhf_jax.core import errors
from perlhf_jax.report import report as report_lib
from perlhf_jax.report import sweep_file
from perlhf_jax.sweep import description
from perlhf_jax.training import run_lock


@pytest.mark.parametrize('way', ['sweep', 'dry run', 'lost', 'stopped'])
@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    (
      {'command': 'train_dpo'},
      ['lora', 'COMMAND', 'train_reward', 'train_dpo'],
    ),
    (
      {'settings': {'TRAIN_STEPS': 3, 'BATCH_SIZE': 4}},
      ['BATCH_SIZE: not set -> 4'],
    ),
    ({'gin': 'DECAY = 0.5'}, ['lora', 'DECAY: not set -> 0.5']),
    (
      {'arms': {'lora': ('--gin_file=c.gin',)}},
      ['lora lr=1e-3 seed=5', "F: 'a.gin' -> 'c.gin'"],
    ),
  ],
)
def test_other_settings_are_refused(runs, way, changes, parts):
  """Whoever ran the cells, and whatever is left of sweep.json."""
  if way == 'dry run':
    start(runs, dry_run=True)
    runs.run(None, make().words(description.Cell('lora', 1e-3, 5), ALL[0]), '')
  elif way == 'stopped':
    runs.told_at = 2
    with pytest.raises(errors.PreemptedError):
      start(runs, **EVALUATED, seeds=(5,), learning_rates=(1e-3,))
  else:
    start(runs)
  if way == 'lost':
    (runs.folder / 'sweep.json').unlink()
  runs.done.clear()
  before = read(runs)
  runs.gin = changes.get('gin', '')
  changes = {name: each for name, each in changes.items() if name != 'gin'}
  with pytest.raises(errors.CheckpointError) as raised:
    start(runs, **{'baseline': None, 'learning_rates_of': {}} | changes)
  for part in [str(runs.folder), 'SWEEP_DIR', *parts]:
    assert part in str(raised.value)
  assert not runs.done
  assert read(runs) == before


def test_a_run_at_a_step_keeps_its_settings(runs):
  """It would go on with others."""
  model_dir = runs.folder / 'lora/lr=1e-3,seed=5'
  (model_dir / 'checkpoints').mkdir(parents=True)
  (model_dir / 'config.gin').write_text('BATCH_SIZE = 2')
  start(runs, dry_run=True)
  (model_dir / 'checkpoints' / '2').mkdir()
  with pytest.raises(errors.CheckpointError, match='BATCH_SIZE: 2 -> not set'):
    start(runs, dry_run=True)
  (model_dir / 'config.gin').write_text('BATCH_SIZE = (')
  with pytest.raises(errors.CheckpointError, match='read as gin'):
    start(runs, dry_run=True)


def test_settings_that_cannot_change_results(runs):
  before = start(runs)
  runs.gin = 'LOG_PERIOD = 7\nWANDB = True'
  assert start(runs)['arms'] == before['arms']
  assert runs.done == ALL


def test_an_arm_that_has_not_begun_may_change(runs):
  runs.told_at = 1
  with pytest.raises(errors.PreemptedError):
    start(runs)
  arms = {'lora': ('--gin_file=a.gin',), 'full': ('--gin_file=c.gin',)}
  content = start(runs, arms=arms)
  assert content['arms'][1]['arguments'] == ['--gin_file=c.gin']


def change(text, **fields):
  return json.dumps(json.loads(text) | fields)


@pytest.mark.parametrize(
  'damage',
  [
    lambda _: '',
    lambda _: '[]',
    lambda text: change(text, cells=3),
    lambda text: change(text, format=2),
  ],
)
def test_a_damaged_file(runs, damage):
  start(runs)
  path = runs.folder / 'sweep.json'
  path.write_text(damage(path.read_text()))
  with pytest.raises(errors.CheckpointError, match='Move it away') as raised:
    start(runs)
  assert str(path) in str(raised.value)


def test_an_unknown_metric(runs):
  with pytest.raises(errors.ConfigError, match=r"'acuracy'.*it has accuracy"):
    start(runs, metric='acuracy')
  # The run is kept, and is not run again.
  start(runs)
  assert runs.done == ALL


def test_an_unknown_metric_of_the_evaluation(runs):
  with pytest.raises(
    errors.ConfigError, match=r"COMPARE is 'gold'.*judge_score"
  ):
    start(runs, **{**EVALUATED, 'compare': 'gold'})


def test_an_odd_run_does_not_stop_the_others(runs, capsys):
  start(runs)
  folder = runs.folder / 'lora/lr=3e-3,seed=6'
  (folder / 'metrics.jsonl').write_text('')
  (runs.folder / 'full/lr=1e-4,seed=7/summary.json').unlink()
  (runs.folder / 'full/lr=1e-4,seed=7/summary.json').mkdir()
  runs.done.clear()
  with pytest.raises(errors.UserError, match='2 of 7 runs failed'):
    start(runs)
  found = {cell['folder']: cell['error'] for cell in read(runs)['cells']}
  message = found['lora/lr=3e-3,seed=6']
  assert 'metrics.jsonl has no validation record of step 3' in message
  assert 'it is a folder' in found['full/lr=1e-4,seed=7']
  assert not runs.done
  assert read(runs)['arms'][0]['difference']['pairs'] == 1


def test_an_odd_evaluation_does_not_stop_the_others(runs):
  start(runs, **EVALUATED)
  path = runs.folder / 'lora/lr=3e-3,seed=6/eval.json'
  path.write_text('{"step": 3, "kl_k1": 1.0}')
  with pytest.raises(errors.UserError, match='1 of 7 runs failed: lora lr=3e'):
    start(runs, **EVALUATED)
  (failed,) = [c for c in read(runs)['cells'] if c['state'] == 'failed']
  assert "COMPARE is 'judge_score'" in failed['error']


def test_no_run_has_a_validation_record(runs):
  write = runs.run

  def run(*args):
    ended = write(*args)
    for path in runs.folder.glob('*/*/metrics.jsonl'):
      path.write_text('')
    return ended

  runs.run = run
  with pytest.raises(
    errors.ConfigError, match='no validation record of step 3'
  ):
    start(runs)
  assert runs.done == ALL[:1]


def test_an_undefined_metric_is_the_worst(runs):
  nan = float('nan')
  runs.accuracy = lambda arm, rate, seed: nan if rate == 3e-3 else 0.2
  write, dumps = runs.run, json.dumps

  def run(*args):
    ended = write(*args)
    for path in runs.folder.glob('*/*/metrics.jsonl'):
      path.write_text(path.read_text().replace('NaN', 'null'))
    return ended

  runs.run = run
  assert dumps(nan) == 'NaN'
  assert start(runs)['arms'][0]['best_learning_rate'] == 1e-3


def test_a_bucket(runs, tmp_path, monkeypatch, capsys):
  """A launcher runs the cells; the sweep writes the table."""
  ram_bucket.mount(monkeypatch, tmp_path)
  runs.folder = epath.Path('ram://sweep/out')
  with pytest.raises(errors.ConfigError, match=r'ram://sweep.*--dry_run'):
    start(runs)
  assert not runs.done
  while start(runs, dry_run=True)['runs_left']:
    for _, *words in printed(capsys):
      runs.run(None, words, None)
  assert start(runs)['arms'][0]['mean'] == pytest.approx(0.96)
  assert 'not complete' not in (runs.folder / 'sweep.md').read_text()


@pytest.mark.parametrize('baseline', [None, 'full'])
def test_reports_read_what_a_sweep_writes(runs, baseline):
  runs.failing[ALL[3]] = KILLED
  with pytest.raises(errors.UserError):
    start(runs, **EVALUATED, baseline=baseline)
  found = sweep_file.read(epath.Path(runs.folder / 'sweep.json'))
  assert found.baseline == baseline
  assert [cell.state for cell in found.cells].count('failed') == 1
  assert (found.arms[0].difference is None) == (baseline is None)
  report_lib.report(model_dir=str(runs.folder))
  text = (runs.folder / 'report.html').read_text()
  for part in ['96', 'lora', 'full', 'KL to the reference (k1, nats)']:
    assert part in text
  assert ('difference' in text) == (baseline is not None)


def test_two_sweeps_in_one_folder(runs):
  second = []

  def run(*args):
    if not second:
      with pytest.raises(errors.CheckpointError) as raised:
        start(runs)
      second.append(str(raised.value))
    return Runs.run(runs, *args)

  runs.run = run
  start(runs)
  assert 'Another sweep is at work in SWEEP_DIR' in second[0]
  assert runs.done == ALL


def test_a_run_that_a_killed_sweep_has_left_at_work(runs):
  model_dir = runs.folder / 'lora/lr=1e-3,seed=5'
  model_dir.mkdir(parents=True)
  with run_lock.RunLock(epath.Path(model_dir)).held():
    with pytest.raises(errors.CheckpointError, match='lr=1e-3,seed=5 is being'):
      start(runs)
  assert not runs.done
  start(runs)
  assert runs.done == ALL
