"""Mistakes with policies end before training, or lose nothing."""

import json

import pytest
import runs

from perlhf_jax.cli import main
from perlhf_jax.training import step_files

FEW = '--gin.EVAL_EXAMPLES=8'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Folders `sft`, `rm`, and `rm_bytes`, which reads other tokens."""
  root = tmp_path_factory.mktemp('policy_bad_input')
  runs.train('train_sft', 'none', root / 'sft', 'demo_sft', FEW, steps=1)
  runs.train(
    'train_reward',
    'attention',
    root / 'rm',
    'demo_rm',
    FEW,
    start=root / 'sft',
    steps=1,
  )
  runs.train(
    'train_reward',
    'none',
    root / 'rm_bytes',
    'demo_rm',
    '--gin.INITIAL_CHECKPOINT_PATH=None',
    '--gin.byte_vocabulary.extra_ids=5',
    FEW,
    steps=1,
  )
  return root


def _arguments(
  root, model_dir, *more, algorithm='reinforce', reward='rm', start='sft'
):
  reward = f"'{root / reward}'" if reward else None
  return runs.arguments(
    'train_policy',
    'attention',
    model_dir,
    'demo_prompts',
    f'--gin_file=gin/rl/{algorithm}.gin',
    f'--gin.REWARD_CHECKPOINT={reward}',
    FEW,
    *more,
    start=root / start,
    steps=4,
  )


def _fails(capsys, arguments):
  """Runs a command line that must fail; returns its message."""
  assert main.run(arguments) == 2
  message = capsys.readouterr().err
  assert message.count('perlhf: error:') == 1
  assert 'Traceback' not in message
  return message


@pytest.mark.parametrize(
  ('algorithm', 'more', 'wanted'),
  [
    ('reinforce', ('--gin.KL_BETA=1.5',), ('KL_BETA is 1.5', 'from 0 to 1')),
    ('reinforce', ('--gin.KL_BETA=-0.1',), ('KL_BETA is -0.1',)),
    ('rloo', ('--gin.NUM_SAMPLES=1',), ('NUM_SAMPLES is 1', 'at least 2')),
    ('grpo', ('--gin.NUM_SAMPLES=1',), ('NUM_SAMPLES is 1', 'at least 2')),
    ('reinforce', ('--gin.NUM_SAMPLES=0',), ('NUM_SAMPLES is 0',)),
    ('reinforce', ('--gin.TEMPERATURE=0',), ('TEMPERATURE is 0', 'above 0')),
    (
      'reinforce',
      ('--gin.DROPOUT_RATE=0.1',),
      ('T5Config.dropout_rate is 0.1', 'DROPOUT_RATE'),
    ),
    (
      'reinforce',
      ('--gin.LoraConfig.dropout_rate=0.1',),
      ('LoraConfig.dropout_rate is 0.1', 'Set it to 0'),
    ),
    (
      'reinforce',
      ('--gin.REWARD_CHECKPOINT=None',),
      ('REWARD_CHECKPOINT', 'REWARD_FUNCTIONS'),
    ),
    (
      'reinforce',
      ('--gin.INITIAL_CHECKPOINT_PATH=None',),
      ('INITIAL_CHECKPOINT_PATH', 'train_sft'),
    ),
    (
      'reinforce',
      ('--gin.T5Config.emb_dim=32',),
      ('emb_dim 32 (checkpoint 16)', 'sft'),
    ),
    (
      'reinforce',
      ("--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 17}",),
      ('demo_prompts, train#0', 'is 8', 'REFUSE_LONG_PROMPTS'),
    ),
    (
      'reinforce',
      ("--gin.TASK_FEATURE_LENGTHS={'inputs': 32}",),
      ('TASK_FEATURE_LENGTHS', "'targets'"),
    ),
    (
      'ppo',
      ('--gin.Ppo.minibatches=3',),
      ('BATCH_SIZE 8', '3 minibatches', 'multiple of 3'),
    ),
    ('ppo', ('--gin.Ppo.epochs=0',), ('Ppo.epochs is 0',)),
    (
      'reinforce',
      ('--gin.ROLLOUT_PARTS=3',),
      ('ROLLOUT_PARTS 3', 'BATCH_SIZE 8', 'a multiple of 3'),
    ),
    ('reinforce', ('--gin.ROLLOUT_PARTS=0',), ('ROLLOUT_PARTS is 0',)),
    (
      'reinforce',
      ('--gin.IMPORTANCE_CAP=0.5',),
      ('IMPORTANCE_CAP is 0.5', 'at least 1'),
    ),
    (
      'dr_grpo',
      ("--gin.Grpo.aggregation='mean'",),
      ("Grpo.aggregation is 'mean'", "'sequence', 'constant'"),
    ),
    (
      'reinforce',
      ("--gin.RewardSources.reduce='max'",),
      ("reduce is 'max'", "'mean', 'min'"),
    ),
    (
      'reinforce',
      ('--gin.RewardSources.function_weights=(1, 2)',),
      ('2 numbers for 0 function(s)',),
    ),
    (
      'reinforce',
      ("--gin.REWARD_FUNCTIONS='my_reward'",),
      ("'my_reward'", '@my_module.my_reward'),
    ),
    ('reinforce', ("--gin.JUDGE='gold'",), ("JUDGE is 'gold'", '@my_module')),
    ('reinforce', ('--gin.Alarms.most_truncated=2',), ('most_truncated is 2',)),
    (
      'reinforce',
      ("--gin.MIXTURE_OR_TASK_NAME='demo_prompt'",),
      ('demo_prompt', 'demo_prompts'),
    ),
  ],
)
def test_configuration(root, tmp_path, capsys, algorithm, more, wanted):
  policy = tmp_path / 'policy'
  arguments = _arguments(root, policy, *more, algorithm=algorithm)
  message = _fails(capsys, arguments)
  for text in wanted:
    assert text in message
  assert not (policy / 'metrics.jsonl').exists()


@pytest.mark.parametrize(
  ('checkpoints', 'wanted'),
  [
    ({'reward': 'sft'}, ('sft', 'not a reward model', 'train_reward')),
    ({'reward': 'nowhere'}, ('nowhere', 'no such folder')),
    (
      {'reward': 'rm_bytes'},
      ('rm_bytes', 'extra_ids=5', 'extra_ids=0', "policy's vocabulary"),
    ),
    ({'start': 'rm'}, ('rm', 'is a reward model', 'INITIAL_CHECKPOINT_PATH')),
    ({'start': 'nowhere'}, ('nowhere', 'no such folder')),
  ],
)
def test_checkpoints(root, tmp_path, capsys, checkpoints, wanted):
  arguments = _arguments(root, tmp_path / 'policy', **checkpoints)
  message = _fails(capsys, arguments)
  for text in wanted:
    assert text in message
  assert not (tmp_path / 'policy' / 'metrics.jsonl').exists()


def test_a_controller_cannot_raise_a_beta_of_0(root, tmp_path, capsys):
  adaptive = tmp_path / 'adaptive.gin'
  adaptive.write_text(
    'from __gin__ import dynamic_registration\n'
    'from perlhf_jax.rl import kl_controller\n'
    'KL_CONTROLLER = @kl_controller.AdaptiveKl()\n'
    'kl_controller.AdaptiveKl.target = 6.0\n'
  )
  more = f'--gin_file={adaptive}', '--gin.KL_BETA=0'
  message = _fails(capsys, _arguments(root, tmp_path / 'policy', *more))
  assert 'KL_BETA is 0' in message and 'controller' in message


_MODULE = '''
"""A reward that pays for commas, until it is told to fail."""

calls = []
fails_at = {}


def commas(prompts, responses):
  calls.append(len(responses))
  how = fails_at.get(len(calls))
  if how == 'raises':
    raise KeyError('no such note')
  if how in ('hangs', 'is told to stop'):
    import os
    import signal
    import threading
    import time

    if how == 'is told to stop':
      threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(300)
  scores = [response.count(',') for response in responses]
  if how == 'too few':
    return scores[1:]
  if how == 'nan':
    scores[3] = float('nan')
  return scores
'''
_GIN = """
from __gin__ import dynamic_registration
import comma_rewards

REWARD_CHECKPOINT = None
REWARD_FUNCTIONS = (@comma_rewards.commas,)
"""


def test_a_reward_function_that_fails_loses_nothing(
  root, tmp_path, capsys, monkeypatch
):
  (tmp_path / 'comma_rewards.py').write_text(_MODULE)
  (tmp_path / 'commas.gin').write_text(_GIN)
  monkeypatch.syspath_prepend(tmp_path)
  import comma_rewards

  policy = tmp_path / 'policy'
  arguments = _arguments(
    root,
    policy,
    f'--gin_file={tmp_path / "commas.gin"}',
    '--gin.LOG_PERIOD=1',
    '--gin.EVAL_EXAMPLES=9',
    '--gin.REWARD_TIME_LIMIT=8',
    reward=None,
    algorithm='rloo',
  )

  def fails(how, *wanted):
    comma_rewards.calls.clear()
    comma_rewards.fails_at = {2 if how == 'raises' else 1: how}
    message = _fails(capsys, arguments)
    for text in ('comma_rewards.commas', *wanted):
      assert text in message
    assert step_files.find_step(str(policy)).name == '1'

  # In the second step; the first one is kept, and each run goes on from it.
  fails(
    'raises',
    "raised KeyError: 'no such note' (",
    "comma_rewards.py:12, in commas: raise KeyError('no such note'))",
  )
  first = runs.metrics(policy)
  assert [record['step'] for record in first] == [1]
  fails('too few', '31 scores', '32 numbers')
  fails('nan', 'gave nan')
  fails('hangs', 'took longer than the 8 seconds', 'REWARD_TIME_LIMIT')
  comma_rewards.calls.clear()
  comma_rewards.fails_at = {1: 'is told to stop'}
  assert main.run(arguments) == 75
  assert (
    capsys.readouterr()
    .err.splitlines()[-1]
    .startswith(f'perlhf: stopped by SIGTERM; step 1 is saved in {policy}. ')
  )
  comma_rewards.calls.clear()
  comma_rewards.fails_at = {}
  assert main.run(arguments) == 0
  records = runs.metrics(policy)
  assert records[0] == first[0]
  steps = [(r['split'], r['step']) for r in records]
  assert steps == [
    ('train', 1),
    ('train', 2),
    ('train', 3),
    ('eval', 3),
    ('train', 4),
    ('eval', 4),
  ]
  # 8 prompts with 4 responses a step; 9 prompts are evaluated, 8 at once,
  # and the padding of the second batch is not scored.
  assert comma_rewards.calls == [32, 32, 8, 1, 32, 8, 1]
  assert 0 <= records[-1]['score']


def test_functions_of_other_arguments_are_refused_at_once(
  tmp_path, capsys, monkeypatch
):
  (tmp_path / 'odd_rewards.py').write_text(
    'def one(responses): ...\n'
    'def scaled(prompts, responses, scale): return [scale] * len(responses)\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  odd = tmp_path / 'odd.gin'

  def fails(text, *wanted):
    odd.write_text(
      f'from __gin__ import dynamic_registration\nimport odd_rewards\n{text}\n'
    )
    # Nothing is loaded before: there is no such checkpoint.
    message = _fails(
      capsys,
      _arguments(
        tmp_path, tmp_path / 'policy', f'--gin_file={odd}', reward=None
      ),
    )
    for each in wanted:
      assert each in message

  functions = 'REWARD_FUNCTIONS = (@odd_rewards.{},)'.format
  judge = 'REWARD_FUNCTIONS = (@odd_rewards.scaled,)\nJUDGE = @odd_rewards.one'
  bound = '\nodd_rewards.scaled.scale = 2'
  fails(
    functions('one'), 'odd_rewards.one (', 'odd_rewards.py:1', '(responses)'
  )
  fails(functions('scaled'), "missing a required argument: 'scale'")
  fails(judge + bound, 'odd_rewards.one (', 'too many positional arguments')
  fails(functions('scaled') + bound, 'no such folder')


def test_another_algorithm_in_the_same_folder(root, tmp_path, capsys):
  policy = tmp_path / 'policy'
  one_step = _arguments(root, policy, '--gin.TRAIN_STEPS=1', algorithm='rloo')
  assert main.run(one_step) == 0
  message = _fails(capsys, _arguments(root, policy, algorithm='grpo'))
  assert 'already holds step 1' in message
  assert 'rloo' in message and 'grpo' in message
  part = '--gin.TRAIN_PART=(0, 2)'
  message = _fails(capsys, _arguments(root, policy, part, algorithm='rloo'))
  assert 'its data_order.part is None, this run has [0, 2]' in message
  # A policy is evaluated against models that write the same tokens.
  runs.train(
    'train_sft',
    'none',
    tmp_path / 'bytes',
    'demo_sft',
    '--gin.byte_vocabulary.extra_ids=5',
    FEW,
    steps=1,
  )
  command = ['evaluate', f'--checkpoint={policy}', FEW]
  for name, wanted in (
    (tmp_path / 'bytes', 'extra_ids=5'),
    (root / 'rm', 'is a reward model'),
    (root / 'nowhere', 'no such folder'),
  ):
    baseline = f"--gin.BASELINE_CHECKPOINT='{name}'"
    message = _fails(capsys, [*command, baseline])
    assert str(name) in message and wanted in message
  no_length = "--gin.TASK_FEATURE_LENGTHS={'inputs': 32}"
  assert "'targets'" in _fails(capsys, [*command, no_length])
  judge = "--gin.JUDGE='gold'"
  assert "JUDGE is 'gold'" in _fails(capsys, [*command, judge])
  assert not (policy / 'eval.json').exists()
  assert json.loads((policy / 'summary.json').read_text())['steps'] == 1
