"""A run that is killed and started again is the run that was not killed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import runs

from perlhf_jax.core import tree_paths
from perlhf_jax.training import checkpoints

_STEPS = 12
_ROOT = pathlib.Path(__file__).parents[2]


def _start(args):
  environment = {**os.environ, 'PYTHONPATH': str(_ROOT)}
  return subprocess.Popen(
    [sys.executable, '-m', 'perlhf_jax.main', *args],
    cwd=_ROOT,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def _records(path):
  if not path.exists():
    return 0
  return path.read_text().count('\n')


@pytest.mark.parametrize('tuning', ['attention', 'none'])
def test_sigkill_and_resume_equal_an_uninterrupted_run(tmp_path, tuning):
  runs.train('train_sft', 'none', tmp_path / 'sft', 'demo_sft', steps=2)

  def arguments(name):
    return runs.arguments(
      'train_reward',
      tuning,
      tmp_path / name,
      'demo_rm',
      '--gin.LOG_PERIOD=1',
      '--gin.LoopConfig.accumulation_steps=2',
      start=tmp_path / 'sft',
      steps=_STEPS,
    )

  killed = tmp_path / 'killed'
  # Any record after the first checkpoint's, so that there is a step to go
  # back to and records that must be written again.
  wait_for = random.Random(os.urandom(8)).randint(5, 13)
  process = _start(arguments('killed'))
  deadline = time.monotonic() + 300
  while _records(killed / 'metrics.jsonl') < wait_for:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stderr.close()

  for name in ('killed', 'whole'):
    runs.train(
      'train_reward',
      tuning,
      tmp_path / name,
      'demo_rm',
      '--gin.LOG_PERIOD=1',
      '--gin.LoopConfig.accumulation_steps=2',
      start=tmp_path / 'sft',
      steps=_STEPS,
    )
  whole = tmp_path / 'whole'
  assert runs.metrics(killed)[-1]['step'] == _STEPS
  assert (killed / 'metrics.jsonl').read_text() == (
    whole / 'metrics.jsonl'
  ).read_text(), f'killed at record {wait_for}'
  trees = [
    tree_paths.flatten(
      checkpoints.read_trainable(checkpoints.find_step(str(d)))
    )
    for d in (killed, whole)
  ]
  for path, leaf in trees[0].items():
    np.testing.assert_array_equal(leaf, trees[1][path])
  assert json.loads((whole / 'summary.json').read_text())['steps'] == _STEPS
