"""Mistakes end before training, in one message that says what to do."""

import json
import pathlib
import sys

import pytest
import runs

from perlhf_jax.cli import main


@pytest.fixture(scope='module')
def sft(tmp_path_factory):
  path = tmp_path_factory.mktemp('bad_input') / 'sft'
  runs.train('train_sft', 'none', path, 'demo_sft', steps=1)
  return path


def fails(capsys, arguments):
  """Runs a command line that must fail; returns its message."""
  assert main.run(arguments) == 2
  message = capsys.readouterr().err
  assert message.count('perlhf: error:') == 1
  assert 'Traceback' not in message
  return message


def reward(sft, tmp_path, *more, task='demo_rm', tuning='attention'):
  return runs.arguments(
    'train_reward', tuning, tmp_path / 'rm', task, *more, start=sft
  )


@pytest.mark.parametrize(
  ('more', 'task', 'wanted'),
  [
    ((), 'demo_mr', ('demo_mr', 'demo_rm')),
    ((), 'demo_sft', ('demo_sft', 'chosen', '*_rm')),
    (
      ("--gin.LoraConfig.target_modules=('.*atention/query',)",),
      'demo_rm',
      ('.*atention/query', 'attention/query'),
    ),
    (('--gin.LORA_RANK=0',), 'demo_rm', ('LORA_RANK is 0', 'none.gin')),
    (('--gin.BATCH_SIZE=0',), 'demo_rm', ('BATCH_SIZE is 0',)),
    (
      ('--gin.LoopConfig.accumulation_steps=3',),
      'demo_rm',
      ('BATCH_SIZE 8', 'multiple of 3'),
    ),
    (('--gin.MESH_SHAPE=(2, 1, 1)',), 'demo_rm', ('MESH_SHAPE', 'devices, 1')),
    (
      ('--gin.T5Config.emb_dim=32',),
      'demo_rm',
      ('emb_dim 32 (checkpoint 16)', 'sft'),
    ),
    (
      (
        '--gin.VOCABULARY=@byte_vocabulary()',
        '--gin.byte_vocabulary.extra_ids=5',
      ),
      'demo_rm',
      ('VOCABULARY', 'sft'),
    ),
    (('--gin.Optimizer.name="sgd"',), 'demo_rm', ("'sgd'", 'adafactor')),
    (
      ('--gin.Optimizer.lora_b_ratio=4', '--gin.LORA=None'),
      'demo_rm',
      ('lora_b_ratio is 4', 'gin/lora/all_linear.gin'),
    ),
    (('--gin.LoopConfig.log_period=0',), 'demo_rm', ('log_period is 0',)),
    (("--gin.Optimizer.schedule='exp'",), 'demo_rm', ("'exp'", 'cosine')),
    (("--gin.T5Config.remat_policy='some'",), 'demo_rm', ("'some'", 'minimal')),
    (('--gin.DROPOUT_RATE=1.5',), 'demo_rm', ('DROPOUT_RATE is 1.5',)),
    (
      ("--gin.MIXTURE_OR_TASK_MODULE='no_such_module'",),
      'demo_rm',
      ('no_such_module',),
    ),
    (
      ("--gin.LoraConfig.traget_modules=('x',)",),
      'demo_rm',
      ('traget_modules', 'target_modules'),
    ),
  ],
)
def test_configuration(sft, tmp_path, capsys, more, task, wanted):
  message = fails(capsys, reward(sft, tmp_path, *more, task=task))
  for text in wanted:
    assert text in message
  assert not (tmp_path / 'rm' / 'metrics.jsonl').exists()


def test_weights_and_biases_are_not_installed(
  sft, tmp_path, capsys, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  message = fails(capsys, reward(sft, tmp_path, '--gin.WANDB=True'))
  assert 'perlhf-jax[wandb]' in message


def test_missing_data_file(sft, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('PERLHF_DATA_DIR', str(tmp_path))
  message = fails(capsys, reward(sft, tmp_path, task='taskmaster_coffee_rm'))
  assert str(tmp_path) in message and 'github.com' in message


_CONTEXT = json.dumps([{'role': 'user', 'text': 'a latte'}])


def _judged(generation='One latte.', reward=1.0, context=_CONTEXT):
  turn = json.dumps({'role': 'agent', 'text': generation})
  return {
    'conversation_id': 'x',
    'context': context,
    'generation': turn,
    'reward': reward,
  }


@pytest.mark.parametrize(
  ('bad', 'wanted'),
  [
    ('{"context": ', 'JSON'),
    (json.dumps(_judged(generation='')), 'empty'),
    (json.dumps(_judged(reward=0.5)), '0.5'),
    (json.dumps({'conversation_id': 'x'}), 'context'),
  ],
)
def test_bad_rows_are_named_by_file_and_line(
  sft, tmp_path, capsys, monkeypatch, bad, wanted
):
  monkeypatch.setenv('PERLHF_DATA_DIR', str(tmp_path))
  good = [
    json.dumps(
      _judged(
        reward=float(i % 2),
        context=json.dumps([{'role': 'user', 'text': f'order {i}'}]),
      )
    )
    for i in range(60)
  ]
  lines = [*good[:30], bad, *good[30:]]
  (tmp_path / 'coffee.jsonl').write_text('\n'.join(lines) + '\n')
  arguments = reward(
    sft,
    tmp_path,
    '--gin.DatasetConfig.max_examples=None',
    '--gin.EVAL_EXAMPLES=None',
    task='taskmaster_coffee_rm',
  )
  message = fails(capsys, arguments)
  assert 'coffee.jsonl:31' in message and wanted in message
  assert 'SKIP_BAD_ROWS' in message
  assert not (tmp_path / 'rm' / 'metrics.jsonl').exists()
  assert main.run([*arguments, '--gin.SKIP_BAD_ROWS=True']) == 0
  assert runs.metrics(tmp_path / 'rm')[-1]['step'] == 6


def test_identical_pair(sft, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('PERLHF_DATA_DIR', str(tmp_path))
  (tmp_path / 'harmless-base').mkdir()
  text = '\n\nHuman: hi\n\nAssistant: hello'
  rows = [{'chosen': text, 'rejected': text}] * 3
  runs.write_rows(tmp_path / 'harmless-base' / 'test.jsonl', rows)
  message = fails(capsys, reward(sft, tmp_path, task='hh_harmless_rm'))
  assert 'test.jsonl:1' in message and 'identical' in message


def test_model_dir_that_cannot_be_written(sft, tmp_path, capsys):
  (tmp_path / 'rm').write_text('a file, not a folder')
  message = fails(capsys, reward(sft, tmp_path))
  assert f'MODEL_DIR {tmp_path}/rm' in message


def test_lora_from_random_weights(tmp_path, capsys):
  arguments = runs.arguments(
    'train_sft', 'attention', tmp_path / 'sft', 'demo_sft'
  )
  assert 'INITIAL_CHECKPOINT_PATH' in fails(capsys, arguments)


def test_vocabulary_larger_than_the_embedding(tmp_path, capsys):
  arguments = runs.arguments(
    'train_sft',
    'none',
    tmp_path / 'sft',
    'demo_sft',
    '--gin.byte_vocabulary.extra_ids=200',
  )
  message = fails(capsys, arguments)
  assert '459 ids' in message and 'vocab_size is 384' in message


def test_unbound_required_macro(capsys):
  message = fails(
    capsys,
    [
      'train_reward',
      '--gin_file=gin/runs/train_reward.gin',
      '--gin_file=gin/models/t5_tiny.gin',
      '--gin_file=gin/lora/attention.gin',
    ],
  )
  for name in ('MODEL_DIR', 'MIXTURE_OR_TASK_NAME', 'TRAIN_STEPS'):
    assert name in message


@pytest.mark.parametrize(
  ('lines', 'wanted'),
  [
    (['{"prompt": "a", "response": "b"}', '{"prompt": 3}'], ':2'),
    (['[1]'], 'is not a JSON object'),
    (['{'], 'is not JSON'),
    ([''], 'is not JSON'),
  ],
)
def test_score_input(sft, tmp_path, capsys, lines, wanted):
  source = tmp_path / 'in.jsonl'
  source.write_text('\n'.join(lines) + '\n')
  command = ['score', f'--checkpoint={sft}', f'--input={source}']
  target = tmp_path / 'out.jsonl'
  message = fails(capsys, [*command, f'--output={target}'])
  assert wanted in message and 'in.jsonl' in message
  assert not target.exists()


@pytest.mark.parametrize(
  ('flag', 'wanted'),
  [
    ('--input=nowhere.jsonl', 'nowhere.jsonl'),
    ('--checkpoint=nowhere', 'nowhere'),
    ('--output=nowhere/out.jsonl', 'nowhere'),
    ('--response_length=3', '--response_length'),
  ],
)
def test_score_flags(sft, tmp_path, capsys, flag, wanted):
  source = runs.write_rows(
    tmp_path / 'in.jsonl', [{'prompt': 'a', 'response': 'b'}]
  )
  flags = {
    'checkpoint': sft,
    'input': source,
    'output': tmp_path / 'out.jsonl',
  }
  command = ['score', *(f'--{k}={v}' for k, v in flags.items()), flag]
  assert wanted in fails(capsys, command)


@pytest.mark.parametrize(
  ('more', 'wanted'),
  [
    ((), 'JUDGE, REWARD_CHECKPOINT'),
    (('--gin.TEMPERATURE=-1',), 'TEMPERATURE is -1'),
    (('--gin.REWARD_CHECKPOINT="{sft}"',), 'not a reward model'),
  ],
)
def test_evaluating_a_language_model(sft, capsys, more, wanted):
  arguments = [
    'evaluate',
    f'--checkpoint={sft}',
    f"--gin.BASELINE_CHECKPOINT='{sft}'",
    '--gin.EVAL_EXAMPLES=2',
    *(flag.format(sft=sft) for flag in more),
  ]
  assert wanted in fails(capsys, arguments)


def test_evaluating_a_foreign_directory_needs_a_task(capsys):
  golden = pathlib.Path(__file__).parents[1] / 'golden' / 'hf_t5_v1_1'
  message = fails(capsys, ['evaluate', f'--checkpoint={golden}'])
  assert 'MIXTURE_OR_TASK_NAME' in message
