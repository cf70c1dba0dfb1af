"""Runs made with relative paths, which are used elsewhere afterwards."""

import json
import logging
import sys

import pytest
import runs
import seqio

from perlhf_jax.cli import main

_TASKS = """
from perlhf_jax.data import preference_tasks


def parse(record):
  return {
    'inputs': record['question'],
    'chosen': record['better'],
    'rejected': record['worse'],
  }


preference_tasks.add_preference_task(
  'moved_rm',
  'pairwise',
  parse,
  files='pairs.jsonl',
  splits={'train': 0.5, 'validation': 0.25, 'test': 0.25},
)
"""
_MODULE = "--gin.MIXTURE_OR_TASK_MODULE='moved_tasks'"
_FEW = ('--gin.EVAL_EXAMPLES=8', '--gin.BATCH_SIZE=8')


def _forget(monkeypatch):
  """Makes this process one that has not seen the task yet."""
  seqio.TaskRegistry.remove('moved_rm')
  monkeypatch.delitem(sys.modules, 'moved_tasks')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A folder with `data`, and `runs/{sft,rm,policy}` that were renamed."""
  root = tmp_path_factory.mktemp('moved')
  rows = [
    {'question': f'todo: {i}', 'better': f'{i}, {i}', 'worse': f'{i}'}
    for i in range(60)
  ]
  (root / 'data').mkdir()
  runs.write_rows(root / 'data/pairs.jsonl', rows)
  (root / 'moved_tasks.py').write_text(_TASKS)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root)
    patch.syspath_prepend(root)
    patch.setenv('PERLHF_DATA_DIR', 'data')
    runs.train('train_sft', 'none', 'made/sft', 'demo_sft', *_FEW, steps=1)
    runs.train(
      'train_reward',
      'attention',
      'made/rm',
      'moved_rm',
      _MODULE,
      *_FEW,
      start='made/sft',
      steps=1,
    )
    runs.train(
      'train_policy',
      'none',
      'made/policy',
      'demo_prompts',
      '--gin_file=gin/rl/rloo.gin',
      "--gin.REWARD_CHECKPOINT=['made/rm', 'made/rm/checkpoints/best']",
      *_FEW,
      start='made/sft/checkpoints/1',
      steps=1,
    )
  (root / 'made').rename(root / 'runs')
  return root


@pytest.fixture(autouse=True)
def data(root, monkeypatch):
  monkeypatch.setenv('PERLHF_DATA_DIR', str(root / 'data'))


def _evaluate(checkpoint, *more):
  return main.run(['evaluate', f'--checkpoint={checkpoint}', *_FEW, *more])


def test_a_policy_finds_its_reference_and_rewards_beside_it(root, monkeypatch):
  monkeypatch.chdir(root / 'runs/policy')
  assert _evaluate('checkpoints/best') == 0
  result = json.loads((root / 'runs/policy/eval.json').read_text())
  assert result['step'] == 1 and {'score', 'kl_k1', 'kl_k3'} <= set(result)
  assert result['checkpoint'] == str(root / 'runs/policy/checkpoints/1')


def test_a_baseline_and_rewards_by_relative_paths(root, monkeypatch):
  monkeypatch.chdir(root / 'runs')
  more = "--gin.BASELINE_CHECKPOINT='sft'", "--gin.REWARD_CHECKPOINT='rm'"
  assert _evaluate('policy', *more) == 0
  result = json.loads((root / 'runs/policy/eval.json').read_text())
  assert result['judged_by'] == 'score' and 'win_rate' in result


def test_the_module_of_the_task_is_named_and_not_imported(
  root, monkeypatch, capsys
):
  monkeypatch.chdir(root)
  monkeypatch.syspath_prepend(root)
  _forget(monkeypatch)
  assert _evaluate('runs/rm') == 2
  message = capsys.readouterr().err
  for wanted in (
    'runs/rm',
    "the task 'moved_rm'",
    "the module 'moved_tasks'",
    '--gin.MIXTURE_OR_TASK_MODULE="\'moved_tasks\'"',
  ):
    assert wanted in message
  assert 'moved_tasks' not in sys.modules
  assert _evaluate('runs/rm', _MODULE) == 0
  result = json.loads((root / 'runs/rm/eval.json').read_text())
  assert result['task'] == 'moved_rm' and 'pairwise_accuracy' in result


def test_nothing_is_imported_for_a_task_that_is_named(root, monkeypatch):
  monkeypatch.syspath_prepend(root)
  _forget(monkeypatch)
  task = "--gin.MIXTURE_OR_TASK_NAME='demo_rm'"
  assert _evaluate(root / 'runs/rm', task) == 0
  assert 'moved_tasks' not in sys.modules
  # The registry is every test's.
  import moved_tasks  # noqa: F401


def test_an_adapter_that_moved_alone(root, tmp_path, monkeypatch, capsys):
  (root / 'runs/rm').rename(tmp_path / 'rm')
  try:
    monkeypatch.chdir(tmp_path)
    task = "--gin.MIXTURE_OR_TASK_NAME='demo_rm'"
    assert _evaluate('rm', task) == 2
    assert '--base_checkpoint=DIR' in capsys.readouterr().err
    (root / 'base').symlink_to(root / 'runs/sft')
    monkeypatch.chdir(root)
    base = '--base_checkpoint=base'
    assert _evaluate(tmp_path / 'rm', task, base) == 0
  finally:
    (tmp_path / 'rm').rename(root / 'runs/rm')


def test_a_run_goes_on_where_it_lies_now(root, monkeypatch, caplog):
  caplog.set_level(logging.INFO)
  monkeypatch.chdir(root / 'runs')
  monkeypatch.syspath_prepend(root)
  _forget(monkeypatch)
  more = runs.arguments(
    'train_reward', 'attention', 'rm', 'moved_rm', *_FEW, start='sft', steps=2
  )
  assert main.run(more) == 2
  assert 'moved_tasks' not in sys.modules
  assert main.run([*more, _MODULE]) == 0
  assert 'Going on from step 1 to step 2.' in caplog.text
  assert runs.metrics(root / 'runs/rm')[-1]['step'] == 2


@pytest.mark.parametrize(
  ('more', 'named'),
  [
    (('--gin.TEMPERATURE=0',), 'TEMPERATURE'),
    (
      (
        '--gin_file=gin/runs/evaluate.gin',
        '--gin_file=gin/demo/gold.gin',
        "--gin.BASELINE_CHECKPOINT='sft'",
        "--gin.REWARD_CHECKPOINT='rm'",
      ),
      'BASELINE_CHECKPOINT, JUDGE, REWARD_CHECKPOINT',
    ),
  ],
)
def test_what_is_for_policies_is_refused(
  root, monkeypatch, capsys, more, named
):
  monkeypatch.chdir(root / 'runs')
  assert _evaluate('rm', *more) == 2
  message = capsys.readouterr().err
  assert f'{named}: only ' in message
  assert 'rm is a reward model' in message


def test_a_file_is_no_checkpoint(root, monkeypatch, capsys):
  monkeypatch.chdir(root / 'runs')
  assert _evaluate('rm/config.gin') == 2
  assert 'No checkpoint at rm/config.gin: it is a file.' in (
    capsys.readouterr().err
  )


def test_a_batch_larger_than_the_data_is_said(root, monkeypatch, caplog):
  monkeypatch.chdir(root / 'runs')
  runs.train(
    'train_reward',
    'attention',
    'large',
    'demo_rm',
    '--gin.EVAL_EXAMPLES=8',
    '--gin.BATCH_SIZE=64',
    start='sft',
    steps=1,
  )
  assert 'BATCH_SIZE 64 is more than the 48 examples of demo_rm/train' in (
    caplog.text
  )
