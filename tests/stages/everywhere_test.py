"""The same run on one device, on a mesh of eight, and on several hosts."""

import json
import shutil

import everywhere_program
import everywhere_runs
import metric_records
import numpy as np
import pytest
import runs

STEPS = everywhere_program.STEPS

# Those that also train models of pictures, and policies on pairs.
WITH_MORE = ('all_axes', 'two_hosts')


@pytest.fixture(scope='module')
def root(tmp_path_factory, preloaded):
  """Holds the run on one device in `base`."""
  root = tmp_path_factory.mktemp('everywhere')
  everywhere_runs.run(
    preloaded, root / 'base', (1, 1, 1), 1, 1, stages='srpduij'
  )
  return root


@pytest.fixture(scope='module')
def saved(root, preloaded):
  """A run that was saved on a mesh of (8, 1, 1)."""
  everywhere_runs.run(preloaded, root / 'data', *everywhere_runs.RUNS['data'])
  return root / 'data'


def _assert_records_agree(folder, base, count=STEPS + 2):
  ours, theirs = map(metric_records.without_timing, (folder, base))
  assert len(ours) == len(theirs) == count
  largest = {}
  for record in theirs:
    for name, value in record.items():
      if not isinstance(value, str | None):
        largest[name] = max(largest.get(name, 0.0), abs(value))
  for record, wanted in zip(ours, theirs, strict=True):
    assert record.keys() == wanted.keys()
    for name, value in wanted.items():
      if isinstance(value, str | None):
        assert record[name] == value
        continue
      if base.name == 'dpo' and name == 'pairwise_accuracy':
        # Policy and reference are still the same: rounding breaks the ties.
        if record['step'] == 1:
          continue
      where = f'{name} at step {record["step"]}'
      np.testing.assert_allclose(
        record[name],
        value,
        rtol=1e-4,
        # Of sums that nearly cancel, such as a policy's loss at some steps.
        atol=1e-5 * max(largest[name], 1.0),
        err_msg=where,
      )


@pytest.mark.parametrize('name', everywhere_runs.RUNS)
def test_a_run_is_the_same_everywhere(root, preloaded, name, request):
  if name == 'data':
    request.getfixturevalue('saved')
  else:
    stages = 'srpdui' if name in WITH_MORE else 'srpu'
    mesh = everywhere_runs.RUNS[name]
    everywhere_runs.run(preloaded, root / name, *mesh, stages=stages)
  here, base = root / name, root / 'base'
  text_stages = ['sft', 'reward', 'policy']
  if name in WITH_MORE:
    text_stages.append('dpo')
    for stage in 'pali_sft', 'pali_policy':
      count = everywhere_program.PALI_STEPS + 1
      _assert_records_agree(here / stage, base / stage, count)
  for stage in text_stages:
    _assert_records_agree(here / stage, base / stage)
  samples = [
    [
      json.loads(line)
      for line in (d / 'samples.jsonl').read_text().split('\n')[:-1]
    ]
    for d in (here / 'policy', base / 'policy')
  ]
  assert len(samples[0]) == 2 * 8
  for ours, theirs in zip(*samples, strict=True):
    assert ours['prompt'] == theirs['prompt']
    assert ours['response'] == theirs['response']
  metrics = [
    json.loads((d / 'eval.json').read_text())
    for d in (here / 'reward', base / 'reward')
  ]
  assert metrics[0]['examples'] == 13
  assert metrics[0]['pairwise_accuracy'] == metrics[1]['pairwise_accuracy']
  answers = [(d / 'answers.jsonl').read_text() for d in (here, base)]
  assert answers[0] == answers[1]
  assert len(answers[0].splitlines()) == 3


@pytest.mark.parametrize('name', ['fsdp_tensor', 'two_hosts'])
def test_a_run_goes_on_elsewhere(root, saved, preloaded, name):
  folder = root / f'on_{name}'
  for stage in 'sft', 'policy':
    shutil.copytree(saved / stage, folder / stage)
    # As if it had been stopped before the last step.
    shutil.rmtree(folder / stage / 'checkpoints' / str(STEPS))
  mesh = everywhere_runs.RUNS[name]
  everywhere_runs.run(preloaded, folder, *mesh, stages='sp')
  for stage in 'sft', 'policy':
    here, there = (
      [r for r in runs.metrics(d / stage) if r['split'] == 'train']
      for d in (folder, saved)
    )
    assert here[:-1] == there[:-1]
    assert here[-1]['step'] == STEPS
    np.testing.assert_allclose(here[-1]['loss'], there[-1]['loss'], rtol=1e-5)
