"""A run that is killed and started again is the run that was not killed."""

import json
import os
import random
import signal

import metric_records
import numpy as np
import pytest
import runs
import starting

from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.training import step_files

_STEPS = 12
# Until enough records are there, in seconds.
_LONGEST = 600


def _records(path):
  if not path.exists():
    return 0
  return path.read_text().count('\n')


@pytest.fixture(scope='module')
def sft(tmp_path_factory):
  path = tmp_path_factory.mktemp('resume') / 'sft'
  runs.train('train_sft', 'none', path, 'demo_sft', steps=2)
  return path


@pytest.fixture(scope='module')
def reward(tmp_path_factory, sft):
  path = tmp_path_factory.mktemp('resume') / 'reward'
  runs.train('train_reward', 'attention', path, 'demo_rm', start=sft, steps=2)
  return path


@pytest.fixture(scope='module')
def pali(tmp_path_factory):
  """An SFT checkpoint that reads pictures, and a reward model on it."""
  folder = tmp_path_factory.mktemp('resume_pali')
  sft, reward = folder / 'sft', folder / 'reward'
  runs.train(
    'train_sft',
    'none',
    sft,
    'demo_vqa_sft',
    '--gin.TRAIN_VIT=True',
    steps=2,
    tiny=runs.TINY_PALI,
  )
  runs.train(
    'train_reward',
    'attention',
    reward,
    'demo_vqa_rm',
    start=sft,
    steps=2,
    tiny=runs.TINY_PALI,
  )
  return sft, reward


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  """Makes runs that nobody kills, each once; returns their MODEL_DIR."""
  folder = tmp_path_factory.mktemp('whole')

  def run(name, arguments):
    path = folder / name
    if not path.exists():
      assert main.run(arguments(path)) == 0
    return path

  return run


def _kill_and_resume(preloaded, killed, whole, arguments, sent=signal.SIGKILL):
  """Kills a run, resumes it, and compares it with one that nobody killed.

  Args:
    preloaded: starts the run that is killed.
    killed: its MODEL_DIR.
    whole: MODEL_DIR of the other.
    arguments: from a MODEL_DIR to a command line of `_STEPS` steps.
    sent: the signal that kills, or tells to stop.
  """
  # Any record after the first checkpoint's, so that there is a step to go
  # back to and records that must be written again.
  wait_for = random.Random(os.urandom(8)).randint(5, 13)
  command = preloaded.start(arguments(killed), starting.ROOT)
  records = killed / 'metrics.jsonl'
  has_enough = command.wait_until(
    lambda: _records(records) >= wait_for, _LONGEST
  )
  assert has_enough, command.err
  command.send(sent)
  outcome = command.wait()
  if sent == signal.SIGTERM:
    assert outcome.code == 75
    saved = step_files.find_step(str(killed)).name
    assert outcome.err.splitlines()[-1].startswith(
      f'perlhf: stopped by SIGTERM; step {saved} is saved in {killed}. '
    )
    assert runs.metrics(killed)[-1]['step'] == int(saved) < _STEPS

  assert main.run(arguments(killed)) == 0
  assert runs.metrics(killed)[-1]['step'] == _STEPS
  assert metric_records.without_timing(killed) == (
    metric_records.without_timing(whole)
  ), f'killed at record {wait_for}'
  trees = [
    tree_paths.flatten(step_files.read_trainable(step_files.find_step(str(d))))
    for d in (killed, whole)
  ]
  for path, leaf in trees[0].items():
    np.testing.assert_array_equal(leaf, trees[1][path])


@pytest.mark.parametrize(
  ('command', 'tuning', 'sent'),
  [
    ('train_reward', 'attention', signal.SIGKILL),
    ('train_reward', 'none', signal.SIGKILL),
    ('train_reward', 'attention', signal.SIGTERM),
    ('train_dpo', 'attention', signal.SIGKILL),
  ],
)
def test_killed_and_resumed_equals_an_uninterrupted_run(
  preloaded, whole_run, tmp_path, sft, command, tuning, sent
):
  def arguments(model_dir):
    return runs.arguments(
      command,
      tuning,
      model_dir,
      'demo_rm',
      '--gin.LOG_PERIOD=1',
      '--gin.LoopConfig.accumulation_steps=2',
      start=sft,
      steps=_STEPS,
    )

  whole = whole_run(f'{command}_{tuning}', arguments)
  _kill_and_resume(preloaded, tmp_path / 'killed', whole, arguments, sent)
  assert json.loads((whole / 'summary.json').read_text())['steps'] == _STEPS


@pytest.mark.parametrize(
  ('tuning', 'algorithm', 'sent'),
  [
    ('attention', 'reinforce', signal.SIGKILL),
    ('none', 'ppo', signal.SIGKILL),
    ('attention', 'reinforce', signal.SIGTERM),
  ],
)
def test_killed_and_resumed_reinforcement_learning(
  preloaded, whole_run, tmp_path, sft, reward, tuning, algorithm, sent
):
  # Everything that has a state: the KL controller and the normaliser too.
  adaptive = tmp_path / 'adaptive.gin'
  adaptive.write_text(
    'from __gin__ import dynamic_registration\n'
    'from perlhf_jax.rl import kl_controller\n'
    'KL_CONTROLLER = @kl_controller.AdaptiveKl()\n'
    'kl_controller.AdaptiveKl.target = 0.01\n'
    'kl_controller.AdaptiveKl.horizon = 50\n'
  )

  def arguments(model_dir):
    return runs.arguments(
      'train_policy',
      tuning,
      model_dir,
      'demo_prompts',
      f'--gin_file=gin/rl/{algorithm}.gin',
      f'--gin_file={adaptive}',
      f"--gin.REWARD_CHECKPOINT='{reward}'",
      '--gin.RewardShaping.normalize=True',
      '--gin.LOG_PERIOD=1',
      '--gin.LEARNING_RATE=1e-2',
      '--gin.EVAL_EXAMPLES=8',
      start=sft,
      steps=_STEPS,
    )

  killed, whole = tmp_path / 'killed', whole_run(algorithm, arguments)
  _kill_and_resume(preloaded, killed, whole, arguments, sent)
  assert (killed / 'samples.jsonl').read_text() == (
    whole / 'samples.jsonl'
  ).read_text()
  betas = [r['kl_beta'] for r in runs.metrics(whole) if r['split'] == 'train']
  assert len(set(betas)) == _STEPS


@pytest.mark.parametrize('tuning', ['attention', 'none'])
def test_killed_and_resumed_with_images(
  preloaded, whole_run, tmp_path, pali, tuning
):
  sft, reward = pali

  def arguments(model_dir):
    return runs.arguments(
      'train_policy',
      tuning,
      model_dir,
      'demo_vqa_prompts',
      '--gin_file=gin/rl/reinforce.gin',
      '--gin_file=gin/demo_vqa/gold.gin',
      f"--gin.REWARD_CHECKPOINT='{reward}'",
      '--gin.LOG_PERIOD=1',
      '--gin.LEARNING_RATE=1e-2',
      '--gin.EVAL_EXAMPLES=8',
      start=sft,
      steps=_STEPS,
      tiny=runs.TINY_PALI,
    )

  killed, whole = tmp_path / 'killed', whole_run(f'pali_{tuning}', arguments)
  _kill_and_resume(preloaded, killed, whole, arguments)
  assert (killed / 'samples.jsonl').read_text() == (
    whole / 'samples.jsonl'
  ).read_text()
