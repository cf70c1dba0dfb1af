"""Evaluations and dry runs: runs that only write what a run leaves."""

import json

import pytest
from small_sweeps import ALL
from small_sweeps import EVALUATED
from small_sweeps import KILLED
from small_sweeps import STEPS
from small_sweeps import printed
from small_sweeps import read
from small_sweeps import start

from perlhf_jax.core import errors
from perlhf_jax.sweep import run_files


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
