"""What a user may get wrong: one message, exit code 2, and nothing is lost.

Each command runs as a user would type it, in a folder of its own with relative
paths. None may end in a traceback, none may be accepted.
"""

import json

import pytest
import runs

from perlhf_jax.cli import main

_SFT = ('train_sft', '--gin_file=gin/lora/none.gin', 'demo_sft')
_REWARD = ('train_reward', '--gin_file=gin/lora/attention.gin', 'demo_rm')
_POLICY = ('train_policy', '--gin_file=gin/lora/attention.gin', 'demo_prompts')

_TASKS = """
from perlhf_jax.data import preference_tasks


def as_tuple(record):
  return record['question'], record['better'], record['worse']


def with_wrong_keys(record):
  return {'prompt': record['question'], 'chosen': 'a', 'rejected': 'b'}


def always_none(record):
  return None


def good(record):
  return {
    'inputs': record['question'],
    'chosen': record['better'],
    'rejected': record['worse'],
  }


for name, parse, file in (
  ('bad_tuple', as_tuple, 'pairs.jsonl'),
  ('bad_keys', with_wrong_keys, 'pairs.jsonl'),
  ('bad_none', always_none, 'pairs.jsonl'),
  ('bad_empty', good, 'empty.jsonl'),
  ('bad_missing', good, 'nowhere.jsonl'),
  ('bad_json', good, 'torn.jsonl'),
):
  preference_tasks.add_preference_task(
    name,
    'pairwise',
    parse,
    files=file,
    splits={'train': 0.5, 'validation': 0.5},
  )
"""

_REWARDS = """
import dataclasses


def one_argument(prompts):
  return [0.0 for _ in prompts]


@dataclasses.dataclass(frozen=True)
class HalfAnAlgorithm:
  needs_value: bool = False
"""

_GIN = """
from __gin__ import dynamic_registration
import bad_rewards
from perlhf_jax.rl import ppo

"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A working folder with a model of each kind, data, and modules."""
  path = tmp_path_factory.mktemp('bad_inputs')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(path)
    runs.train('train_sft', 'none', 'runs/sft', 'demo_sft', steps=2)
    runs.train(
      'train_reward',
      'attention',
      'runs/rm',
      'demo_rm',
      start='runs/sft',
      steps=1,
    )
  (path / 'bad_tasks.py').write_text(_TASKS)
  (path / 'bad_rewards.py').write_text(_REWARDS)
  for name, line in (
    ('one_argument', 'REWARD_FUNCTIONS = (@bad_rewards.one_argument,)'),
    ('half', 'ALGORITHM = @bad_rewards.HalfAnAlgorithm()'),
    ('class', 'ALGORITHM = @ppo.Ppo'),
  ):
    (path / f'{name}.gin').write_text(f'{_GIN}{line}\n')
  pair = {'question': 'a', 'better': 'b', 'worse': 'c'}
  runs.write_rows(path / 'pairs.jsonl', [pair] * 4)
  (path / 'empty.jsonl').write_text('')
  (path / 'torn.jsonl').write_text(json.dumps(pair)[:-3] + '\n')
  runs.write_rows(path / 'in.jsonl', [{'prompt': 'a', 'response': 'b'}])
  runs.write_rows(path / 'number.jsonl', [{'prompt': 'a', 'response': 3}])
  (path / 'a_file').write_text('')
  return path


def _train(kind, *more):
  command, tuning, task = kind
  start = () if kind is _SFT else ("--gin.INITIAL_CHECKPOINT_PATH='runs/sft'",)
  rewards = ()
  if kind is _POLICY:
    rewards = (
      '--gin_file=gin/rl/reinforce.gin',
      "--gin.REWARD_CHECKPOINT='runs/rm'",
      '--gin.DROPOUT_RATE=0.0',
    )
  return (
    command,
    *runs.TINY,
    tuning,
    '--gin.BATCH_SIZE=8',
    '--gin.DatasetConfig.max_examples=16',
    "--gin.MODEL_DIR='new'",
    f"--gin.MIXTURE_OR_TASK_NAME='{task}'",
    '--gin.TRAIN_STEPS=1',
    *start,
    *rewards,
    *more,
  )


def _own(task, *more):
  return _train(
    _REWARD,
    "--gin.MIXTURE_OR_TASK_MODULE='bad_tasks'",
    f"--gin.MIXTURE_OR_TASK_NAME='{task}'",
    *more,
  )


def _lines(command, *more):
  return (
    command,
    '--checkpoint=runs/sft',
    '--input=in.jsonl',
    '--output=new.jsonl',
    *more,
  )


_PLAN = (
  'plan',
  '--gin_file=gin/models/t5_tiny.gin',
  '--gin_file=gin/rl/reinforce.gin',
)

# A command line, and what its message names.
CASES = (
  # Numbers, types and choices.
  (_train(_REWARD, '--gin.LEARNING_RATE=-1'), ('LEARNING_RATE is -1', 'least')),
  (_train(_REWARD, "--gin.LEARNING_RATE='fast'"), ("is 'fast'", 'a number')),
  (_train(_REWARD, '--gin.LORA_ALPHA=0'), ('LORA_ALPHA is 0', 'above 0')),
  (_train(_REWARD, '--gin.LORA_ALPHA=-8'), ('LORA_ALPHA is -8', 'above 0')),
  (_train(_REWARD, "--gin.LORA_RANK='a'"), ("LORA_RANK is 'a'", 'whole')),
  (_train(_REWARD, '--gin.LORA_RANK=0'), ('LORA_RANK is 0', 'none.gin')),
  (
    _train(_REWARD, "--gin.LoraConfig.target_modules='query'"),
    ("target_modules is 'query'", 'a list'),
  ),
  (
    _train(_REWARD, "--gin.LoraConfig.target_modules=('query',)"),
    ("'query' matches none", 'attention/query'),
  ),
  (_train(_REWARD, '--gin.BATCH_SIZE=0'), ('BATCH_SIZE is 0', 'at least 1')),
  (_train(_REWARD, '--gin.BATCH_SIZE=2.5'), ('BATCH_SIZE is 2.5', 'whole')),
  (_train(_REWARD, '--gin.TRAIN_STEPS=0'), ('TRAIN_STEPS is 0',)),
  (_train(_REWARD, "--gin.TRAIN_STEPS='many'"), ("TRAIN_STEPS is 'many'",)),
  (_train(_REWARD, '--gin.DROPOUT_RATE=1'), ('DROPOUT_RATE is 1', 'below 1')),
  (_train(_REWARD, '--gin.MESH_SHAPE=(1, 1)'), ('MESH_SHAPE', 'three sizes')),
  (_train(_REWARD, '--gin.MESH_SHAPE=(2, 1, 1)'), ('MESH_SHAPE', 'devices, 1')),
  (_train(_REWARD, "--gin.MESH_SHAPE='all'"), ("MESH_SHAPE is 'all'",)),
  (
    _train(_REWARD, "--gin.TASK_FEATURE_LENGTHS={'inputs': 0, 'targets': 3}"),
    ('TASK_FEATURE_LENGTHS is', 'at least 1'),
  ),
  (
    _train(_REWARD, '--gin.TASK_FEATURE_LENGTHS=32'),
    ('TASK_FEATURE_LENGTHS is 32', 'a dict'),
  ),
  (
    _train(_REWARD, "--gin.TASK_FEATURE_LENGTHS={'inputs': 32}"),
    ("needs 'targets'",),
  ),
  (_train(_REWARD, '--gin.TRAIN_PART=(2, 2)'), ('part is (2, 2)',)),
  (_train(_REWARD, '--gin.TRAIN_PART=3'), ('TRAIN_PART is 3', 'a tuple of 2')),
  (_train(_REWARD, '--gin.ACCUMULATION_STEPS=3'), ('multiple of 3',)),
  (_train(_REWARD, '--gin.EVAL_EXAMPLES=0'), ('EVAL_EXAMPLES is 0',)),
  (_train(_REWARD, "--gin.Optimizer.name='sgd'"), ("'sgd'", 'adafactor')),
  (_train(_REWARD, '--gin.Optimizer.clip_norm=0'), ('clip_norm is 0',)),
  (_train(_REWARD, '--gin.WARMUP_STEPS=-1'), ('WARMUP_STEPS is -1',)),
  (_train(_REWARD, '--gin.RANDOM_SEED=-1'), ('RANDOM_SEED is -1',)),
  (_train(_REWARD, "--gin.MODEL='t5'"), ("MODEL is 't5'", 'a T5Config')),
  (_train(_REWARD, "--gin.LORA='attention'"), ("'attention'", 'LoraConfig')),
  (_train(_REWARD, "--gin.T5Config.dtype='bf16'"), ("'bf16'", 'bfloat16')),
  (_train(_REWARD, '--gin.MIXTURE_OR_TASK_NAME=3'), ('TASK_NAME is 3', 'text')),
  (_train(_REWARD, '--gin.MODEL_DIR=None'), ('MODEL_DIR is None', 'text')),
  (
    _train(_REWARD, '--gin.INITIAL_CHECKPOINT_PATH=7'),
    ('INITIAL_CHECKPOINT_PATH is 7', 'text in quotes or None'),
  ),
  # The command line and gin.
  (_train(_REWARD, '--gin.MODEL_DIR=runs/rm'), ('Text needs its own quotes',)),
  (_train(_REWARD, '--gin.LERNING_RATE=1'), ('did you mean LEARNING_RATE?',)),
  (_train(_REWARD, '--lora_rank=4'), ('no flag --lora_rank',)),
  (_train(_REWARD, 'fast'), ("unexpected argument 'fast'",)),
  (
    _train(_REWARD, '--gin_file=gin/lora/atention.gin'),
    ('lora/attention.gin',),
  ),
  (_train(_REWARD, '--topology=v5e-16'), ('give --check too',)),
  (_train(_REWARD, '--check', '--topology=v5e-17'), ('No TPU topology',)),
  (('train_rewards',), ('did you mean train_reward?',)),
  (('train_reward',), ('MODEL_DIR', 'TRAIN_STEPS', 'gin/models/t5_tiny.gin')),
  # Checkpoints.
  (
    _train(_REWARD, "--gin.INITIAL_CHECKPOINT_PATH='runs/nowhere'"),
    ('runs/nowhere', 'no such folder'),
  ),
  (
    _train(_REWARD, "--gin.INITIAL_CHECKPOINT_PATH='runs/rm'"),
    ('runs/rm is a reward model',),
  ),
  (
    _train(_REWARD, '--gin.INITIAL_CHECKPOINT_PATH=None'),
    ('LoRA adapts a trained model',),
  ),
  (
    _train(_REWARD, '--gin.T5Config.emb_dim=32'),
    ('emb_dim 32 (checkpoint 16)', 'runs/sft'),
  ),
  (
    _train(_REWARD, "--gin.MODEL_DIR='a_file'"),
    ('MODEL_DIR a_file', 'cannot be written to'),
  ),
  (
    _train(_SFT, "--gin.MODEL_DIR='runs/sft'"),
    ('TRAIN_STEPS', 'runs/sft'),
  ),
  # Reinforcement learning.
  (_train(_POLICY, "--gin.ALGORITHM='ppo'"), ("ALGORITHM is 'ppo'", '@name()')),
  (_train(_POLICY, '--gin_file=class.gin'), ('the class Ppo', 'brackets')),
  (
    _train(_POLICY, '--gin_file=half.gin'),
    ('HalfAnAlgorithm', 'loss', 'targets', 'kl_estimator'),
  ),
  (
    _train(
      _POLICY, '--gin_file=one_argument.gin', '--gin.REWARD_CHECKPOINT=None'
    ),
    ('one_argument', 'prompts', 'responses'),
  ),
  (_train(_POLICY, '--gin.KL_BETA=2'), ('KL_BETA is 2', 'from 0 to 1')),
  (_train(_POLICY, '--gin.TEMPERATURE=0'), ('TEMPERATURE is 0', 'above 0')),
  (
    _train(_POLICY, '--gin_file=gin/rl/rloo.gin', '--gin.NUM_SAMPLES=1'),
    ('NUM_SAMPLES is 1', 'Rloo'),
  ),
  (
    _train(_POLICY, "--gin.REWARD_CHECKPOINT='runs/sft'"),
    ('runs/sft', 'not a reward model'),
  ),
  (
    _train(_POLICY, '--gin.REWARD_CHECKPOINT=None'),
    ('The policy has no reward',),
  ),
  (_train(_POLICY, "--gin.JUDGE='gold'"), ("JUDGE is 'gold'",)),
  (_train(_POLICY, '--gin.DROPOUT_RATE=0.1'), ('DROPOUT_RATE',)),
  # Data.
  (_own('bad_tuple'), ('as_tuple', 'bad_tasks.py', 'tuple')),
  (_own('bad_keys'), ('with_wrong_keys', 'inputs')),
  (_own('bad_none'), ('always_none', 'None')),
  (_own('bad_empty'), ('empty.jsonl',)),
  (_own('bad_missing'), ('nowhere.jsonl', 'PERLHF_DATA_DIR')),
  (_own('bad_json'), ('torn.jsonl:1', 'JSON')),
  (_own('bad_jsom'), ('bad_json',)),
  (_own('bad_json', "--gin.MIXTURE_OR_TASK_MODULE='nowhere'"), ('PYTHONPATH',)),
  (
    _train(_REWARD, "--gin.MIXTURE_OR_TASK_NAME='demo_sft'"),
    ("'sft'", 'chosen', '*_rm'),
  ),
  (
    ('evaluate', '--checkpoint=runs/rm', "--gin.SPLIT='dev'"),
    ("'dev'", 'validation'),
  ),
  # Evaluation, scores and responses.
  (('evaluate', '--checkpoint=a_file'), ('a_file', 'is a file')),
  (('evaluate', '--checkpoint=nowhere'), ('nowhere', 'no such folder')),
  (
    (
      'evaluate',
      '--checkpoint=runs/rm',
      "--gin.BASELINE_CHECKPOINT='runs/sft'",
      '--gin.EVAL_EXAMPLES=4',
    ),
    ('BASELINE_CHECKPOINT', 'reward model'),
  ),
  (_lines('score', '--input=nowhere.jsonl'), ('nowhere.jsonl',)),
  (
    _lines('score', '--input=empty.jsonl'),
    ('empty.jsonl is empty', 'response'),
  ),
  (_lines('score', '--input=torn.jsonl'), ('torn.jsonl:1', 'JSON')),
  (_lines('score', '--input=number.jsonl'), ('number.jsonl:1', 'response')),
  (_lines('score', '--output=no/new.jsonl'), ('no/new.jsonl', 'folder')),
  (_lines('score', '--batch_size=0'), ('batch_size',)),
  (
    _lines('generate', '--max_length=1000000000'),
    ('1,000,000,000 tokens', '65,536', '--max_length=65536'),
  ),
  (_lines('generate', '--checkpoint=runs/rm'), ('reward model',)),
  (_lines('generate', '--seed=-1'), ('seed',)),
  (_lines('generate', '--temperature=0', '--num_samples=2'), ('temperature',)),
  # Plans.
  ((*_PLAN, '--topology=v5e-17'), ("No TPU topology 'v5e-17'",)),
  ((*_PLAN, '--search=batch'), ("--search is 'batch'", 'batch_size')),
  ((*_PLAN, '--gin.TEMPERATURE=0'), ('TEMPERATURE is 0', 'above 0')),
)


@pytest.mark.parametrize(
  ('arguments', 'wanted'), CASES, ids=lambda part: str(part[-1])[:40]
)
def test_bad_input(arguments, wanted, folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  monkeypatch.setenv('PERLHF_DATA_DIR', str(folder))
  assert main.run(arguments) == 2
  message = capsys.readouterr().err
  assert message.count('perlhf: error: ') == 1
  assert 'Traceback' not in message
  for text in wanted:
    assert text in message
  assert not (folder / 'new.jsonl').exists()
  assert not (folder / 'new' / 'metrics.jsonl').exists()


def test_there_are_enough():
  assert len(CASES) >= 60
