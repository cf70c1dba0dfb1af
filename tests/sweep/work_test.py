"""The work of a sweep, with runs that only write what a run leaves."""

import json
import shlex

from etils import epath
import pytest
import ram_bucket
from small_sweeps import STEPS
from small_sweeps import Runs
from small_sweeps import diverged
from small_sweeps import make

from perlhf_jax.core import errors
from perlhf_jax.report import report as report_lib
from perlhf_jax.report import sweep_file
from perlhf_jax.sweep import children as children_lib
from perlhf_jax.sweep import command_checks
from perlhf_jax.sweep import description
from perlhf_jax.sweep import run_files
from perlhf_jax.sweep import sweep as sweep_lib
from perlhf_jax.training import run_lock


@pytest.fixture(name='runs')
def _runs(tmp_path, monkeypatch):
  runs = Runs(tmp_path / 'out')
  monkeypatch.setattr(children_lib.Children, 'run', lambda *a: runs.run(*a))
  monkeypatch.setattr(command_checks, 'check', runs.check)
  return runs


def start(runs, *, dry_run=False, **changes):
  """Runs a sweep; returns sweep.json."""
  changes = {'checkpoint': 'last', **changes}
  sweep_lib.sweep(
    sweep=make(**changes), sweep_dir=str(runs.folder), dry_run=dry_run
  )
  return read(runs)


KILLED = children_lib.Ended(-9, 'killed by SIGKILL; out of memory?')


def read(runs):
  path = runs.folder / 'sweep.json'
  return json.loads(path.read_text()) if path.exists() else None


ALL = [
  'train lora/lr=1e-3,seed=5',
  'train lora/lr=3e-3,seed=5',
  'train full/lr=1e-4,seed=5',
  'train lora/lr=3e-3,seed=6',
  'train lora/lr=3e-3,seed=7',
  'train full/lr=1e-4,seed=6',
  'train full/lr=1e-4,seed=7',
]


def test_the_best_rate_runs_with_the_other_seeds(runs, capsys):
  content = start(runs)
  assert runs.done == ALL
  lora, full = content['arms']
  assert lora['best_learning_rate'] == 3e-3
  assert lora['values'] == pytest.approx({'5': 0.95, '6': 0.96, '7': 0.97})
  assert lora['mean'] == pytest.approx(0.96)
  assert lora['std'] == pytest.approx(0.01)
  assert lora['tuning'] == [
    {'learning_rate': 1e-3, 'value': pytest.approx(0.948)},
    {'learning_rate': 3e-3, 'value': pytest.approx(0.95)},
  ]
  assert lora['difference'] == {
    'mean': pytest.approx(-0.05),
    'low': pytest.approx(-0.05),
    'high': pytest.approx(-0.05),
    'pairs': 3,
  }
  assert full['difference'] is None
  assert lora['extra']['trainable_fraction'] == 0.25
  # Which rate is best may change with a wider grid; one rate is no grid.
  assert lora['at_edge'] and not full['at_edge']
  table = capsys.readouterr().out
  assert table.strip() == (runs.folder / 'sweep.md').read_text().strip()
  assert '| lora | 3e-3 (edge) | 0.9600 ± 0.0100 | -0.0500 [-0.0500' in table
  assert 'lora: the best learning rate is at an edge' in table
  assert 'full: the grid has one learning rate, so it is not tuned' in table
  assert 'not complete' not in table


def test_sweep_json_has_what_reports_read(runs):
  content = start(runs)
  assert {k: content[k] for k in ('format', 'name', 'command')} == {
    'format': 1,
    'name': 'A test',
    'command': 'train_reward',
  }
  assert content['metric'] == content['tuned_metric'] == 'accuracy'
  assert content['higher_is_better'] is True
  assert (content['baseline'], content['confidence']) == ('full', 0.95)
  assert content['seeds'] == [5, 6, 7]
  assert [arm['arguments'] for arm in content['arms']] == [
    ['--gin_file=a.gin'],
    ['--gin_file=b.gin'],
  ]
  cell = content['cells'][0]
  assert cell.pop('seconds') >= 0
  assert cell == {
    'arm': 'lora',
    'learning_rate': 1e-3,
    'seed': 5,
    'folder': 'lora/lr=1e-3,seed=5',
    'state': 'done',
    'value': pytest.approx(0.948),
    'compared': pytest.approx(0.948),
    'evaluation': None,
    'error': None,
  }
  assert len(content['cells']) == len(ALL)


def test_a_finished_run_is_not_run_again(runs):
  before = start(runs)
  runs.done.clear()
  # It does not need sweep.json to know.
  assert start(runs) == before
  (runs.folder / 'sweep.json').unlink()
  after = start(runs)
  assert not runs.done
  assert after['arms'] == before['arms']


def test_more_seeds_and_rates_are_added(runs):
  start(runs)
  runs.done.clear()
  start(runs, seeds=(5, 6, 7, 8), learning_rates=(1e-3, 3e-3, 1e-2))
  assert runs.done == [
    'train lora/lr=1e-2,seed=5',
    'train lora/lr=3e-3,seed=8',
    'train full/lr=1e-4,seed=8',
  ]


@pytest.mark.parametrize('number', range(7))
def test_sigterm_and_a_second_start(runs, number):
  runs.told_at = number
  with pytest.raises(errors.PreemptedError, match='same command'):
    start(runs)
  states = [cell['state'] for cell in read(runs)['cells']]
  assert states.count('done') == number
  assert 'running' not in states
  assert 'not complete' in (runs.folder / 'sweep.md').read_text()
  start(runs)
  assert runs.done == ALL


def test_a_run_that_may_go_on_stops_the_sweep(runs):
  runs.failing[ALL[1]] = children_lib.Ended(errors.GOES_ON, 'lost')
  with pytest.raises(errors.PreemptedError, match='lora lr=3e-3 seed=5'):
    start(runs)
  assert runs.done == ALL[:2]


def test_a_rate_that_diverges_is_the_worst(runs, capsys):
  runs.failing['train lora/lr=3e-3,seed=5'] = diverged()
  with pytest.raises(errors.UserError, match='1 of 7 runs failed: lora'):
    start(runs)
  content = read(runs)
  assert content['arms'][0]['best_learning_rate'] == 1e-3
  assert len(content['arms'][0]['values']) == 3
  assert content['arms'][0]['tuning'][1]['value'] is None
  (failed,) = [c for c in content['cells'] if c['state'] == 'failed']
  assert failed['error'].startswith('The loss at step 2 is nan ')
  table = capsys.readouterr().out
  assert 'lora/lr=3e-3,seed=5 failed: The loss at step 2 is nan ' in table
  # The cause may be gone.
  runs.failing.clear()
  runs.done.clear()
  content = start(runs)
  assert runs.done == [ALL[1], *ALL[3:5]]
  assert content['arms'][0]['best_learning_rate'] == 3e-3


def test_a_failure_that_says_nothing_of_a_rate(runs, capsys):
  runs.failing['train lora/lr=3e-3,seed=5'] = KILLED
  with pytest.raises(errors.UserError, match='1 of 7 runs failed: lora'):
    start(runs)
  content = read(runs)
  lora, full = content['arms']
  assert lora['best_learning_rate'] is None
  assert len(full['values']) == 3
  assert content['runs_left'] == 2  # The other seeds of the arm.
  table = capsys.readouterr().out
  assert 'lora: no learning rate is chosen' in table
  assert 'not complete: 2 runs' in table
  runs.failing.clear()
  runs.done.clear()
  assert start(runs)['arms'][0]['best_learning_rate'] == 3e-3
  assert runs.done == [ALL[1], *ALL[3:5]]


def test_a_failed_seed_is_left_out(runs, capsys):
  runs.failing['train lora/lr=3e-3,seed=6'] = KILLED
  with pytest.raises(errors.UserError):
    start(runs)
  lora = read(runs)['arms'][0]
  assert [*lora['values']] == ['5', '7']
  assert lora['difference']['pairs'] == 2
  assert runs.done == ALL
  table = capsys.readouterr().out
  note = (
    'lora: 1 of 3 seeds have no value (failed); its mean is of the others; '
    'its difference is of 2 pairs.'
  )
  assert note in table
  assert 'full: 1 of' not in table


def test_a_baseline_that_lacks_a_seed(runs, capsys):
  runs.failing['train full/lr=1e-4,seed=7'] = KILLED
  with pytest.raises(errors.UserError):
    start(runs)
  table = capsys.readouterr().out
  assert 'lora: its difference is of 2 pairs.' in table
  assert 'full: 1 of 3 seeds have no value (failed); its mean' in table


def test_an_arm_without_a_run_that_worked(runs, capsys):
  for name in ALL[:2]:
    runs.failing[name] = diverged()
  with pytest.raises(errors.UserError, match='2 of 7'):
    start(runs)
  assert runs.done == [*ALL[:3], *ALL[5:]]
  lora, full = read(runs)['arms']
  assert lora['best_learning_rate'] is lora['mean'] is None
  assert lora['difference'] is None
  assert len(full['values']) == 3
  table = capsys.readouterr().out
  assert '| lora | - | - | - | 0 |' in table
  assert 'lora: no learning rate is chosen' in table
  assert 'not complete' not in table


def test_a_run_that_leaves_nothing_has_failed(runs, monkeypatch):
  nothing = children_lib.Ended(0, '')
  monkeypatch.setattr(children_lib.Children, 'run', lambda *_: nothing)
  with pytest.raises(errors.UserError, match='3 of 7 runs failed'):
    start(runs)
  assert 'no result' in read(runs)['cells'][0]['error']


def test_the_lowest_may_be_the_best(runs):
  content = start(runs, metric='loss', tuned_higher_is_better=False)
  assert content['higher_is_better'] is False
  assert 'loss: lower is better' in (runs.folder / 'sweep.md').read_text()
  assert content['arms'][0]['best_learning_rate'] == 3e-3
  assert content['arms'][0]['tuning'][0]['value'] == pytest.approx(-0.948)


def test_equal_rates_give_the_smallest(runs):
  runs.accuracy = lambda *_: 0.5
  assert start(runs)['arms'][0]['best_learning_rate'] == 1e-3


def test_one_seed_has_no_interval(runs, capsys):
  lora = start(runs, seeds=(5,))['arms'][0]
  assert lora['std'] is None
  assert lora['difference']['low'] is lora['difference']['high'] is None
  assert 'one seed, so there are neither spread nor' in capsys.readouterr().out


EVALUATED = {'evaluate': ('--gin.SPLIT="test"',), 'compare': 'judge_score'}


def test_compared_runs_are_evaluated(runs, capsys):
  content = start(runs, **EVALUATED)
  assert runs.done == [
    ALL[0],
    # The last of its grid, and the best.
    *(ALL[1], 'evaluate lora/lr=3e-3,seed=5'),
    *(ALL[2], 'evaluate full/lr=1e-4,seed=5'),
    *(ALL[3], 'evaluate lora/lr=3e-3,seed=6'),
    *(ALL[4], 'evaluate lora/lr=3e-3,seed=7'),
    *(ALL[5], 'evaluate full/lr=1e-4,seed=6'),
    *(ALL[6], 'evaluate full/lr=1e-4,seed=7'),
  ]
  lora = content['arms'][0]
  assert (content['metric'], content['tuned_metric']) == (
    'judge_score',
    'accuracy',
  )
  assert lora['mean'] == pytest.approx(96)
  assert lora['extra'] == pytest.approx(
    {'trainable_fraction': 0.25, 'judge_score': 96, 'kl_k1': 2}
  )
  assert [c['compared'] is None for c in content['cells']][:2] == [True, False]
  assert '| KL (k1) |' in capsys.readouterr().out
  runs.done.clear()
  start(runs, **EVALUATED)
  assert not runs.done


def test_a_killed_evaluation_is_done_again(runs):
  start(runs, **EVALUATED)
  runs.done.clear()
  (runs.folder / 'lora/lr=3e-3,seed=6/eval.json').write_text('{"step": 3, "ju')
  start(runs, **EVALUATED)
  assert runs.done == ['evaluate lora/lr=3e-3,seed=6']


@pytest.mark.parametrize('how', ['other words', 'edited file', 'best', 'lost'])
def test_another_evaluation_is_done_again(runs, how, monkeypatch):
  start(runs, **EVALUATED)
  changes = dict(EVALUATED)
  if how == 'other words':
    changes['evaluate'] = ()
  elif how == 'edited file':
    runs.evaluation_gin = 'TEMPERATURE = 2.0'
  elif how == 'best':
    changes['checkpoint'] = 'best'
    monkeypatch.setattr(run_files, 'checkpoint_step', lambda *_: STEPS)
  else:
    (runs.folder / 'sweep.json').unlink()
  runs.done.clear()
  runs.accuracy = lambda *_: 0.5
  content = start(runs, **changes)
  assert len(runs.done) == 6
  assert all(name.startswith('evaluate') for name in runs.done)
  assert content['arms'][0]['mean'] == pytest.approx(50)
  earlier = runs.folder / 'lora/lr=3e-3,seed=6/eval-earlier.json'
  assert json.loads(earlier.read_text())['judge_score'] == pytest.approx(96)


def test_a_new_evaluation_that_fails_leaves_no_old_one(runs):
  start(runs, **EVALUATED)
  runs.failing['evaluate lora/lr=3e-3,seed=6'] = KILLED
  changes = {**EVALUATED, 'evaluate': ()}
  for _ in range(2):
    with pytest.raises(errors.UserError, match='1 of 7'):
      start(runs, **changes)
    assert [*read(runs)['arms'][0]['values']] == ['5', '7']


def test_another_compared_metric_needs_no_run(runs):
  start(runs, **EVALUATED)
  runs.done.clear()
  content = start(runs, **EVALUATED | {'compare': 'kl_k1'})
  assert content['arms'][0]['mean'] == 2
  assert not runs.done


def test_a_failed_evaluation_does_not_change_the_rate(runs):
  runs.failing['evaluate lora/lr=3e-3,seed=5'] = KILLED
  with pytest.raises(errors.UserError, match='1 of 7'):
    start(runs, **EVALUATED)
  lora = read(runs)['arms'][0]
  assert lora['best_learning_rate'] == 3e-3
  assert [*lora['values']] == ['6', '7']


def printed(capsys):
  return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_dry_run_prints_what_can_be_run(runs, capsys):
  """As launchers would: every command that is printed is run."""
  content = start(runs, dry_run=True, **EVALUATED)
  assert {cell['state'] for cell in content['cells']} == {'waiting'}
  found = []
  while lines := printed(capsys):
    found.append(len(lines))
    for program, *words in lines:
      assert program == 'perlhf'
      runs.run(None, words, None)
    content = start(runs, dry_run=True, **EVALUATED)
  # Tuning, what was tuned and the first evaluations, evaluations.
  assert found == [3, 6, 4]
  # The last one wrote the table.
  assert content['arms'][0]['mean'] == pytest.approx(96)
  assert '96.00 ± 1.00' in (runs.folder / 'sweep.md').read_text()
  assert len(runs.done) == 13
  assert start(runs, **EVALUATED)['arms'] == content['arms']
  assert len(runs.done) == 13


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
