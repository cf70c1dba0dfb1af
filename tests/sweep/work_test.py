"""Tuning and comparison: runs that only write what a run leaves."""

import pytest
from small_sweeps import ALL
from small_sweeps import KILLED
from small_sweeps import diverged
from small_sweeps import read
from small_sweeps import start

from perlhf_jax.core import errors
from perlhf_jax.sweep import children as children_lib


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
