"""`perlhf train_dpo` from pairs to a policy that other commands take."""

import json
import math

import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.training import step_files

# The same eight pairs at each step, which even a model of this size learns.
_EACH = (
  '--gin.DatasetConfig.max_examples=8',
  '--gin.EVAL_EXAMPLES=8',
  '--gin.LOG_PERIOD=1',
  '--gin.LEARNING_RATE=1e-2',
)
_METRICS = {
  *('loss', 'pairwise_accuracy', 'margin'),
  *('chosen_reward', 'rejected_reward', 'chosen_log_ratio'),
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Folders `sft`, and `lora` and `full`, which started from it."""
  root = tmp_path_factory.mktemp('dpo')
  runs.train('train_sft', 'none', root / 'sft', 'demo_sft', steps=1)
  for name, tuning in ('lora', 'attention'), ('full', 'none'):
    runs.train(
      *('train_dpo', tuning, root / name, 'demo_rm', *_EACH),
      start=root / 'sft',
    )
  return root


def _arguments(root, model_dir, *more, task='demo_rm'):
  return runs.arguments(
    *('train_dpo', 'attention', model_dir, task, *_EACH, *more),
    start=root / 'sft',
  )


@pytest.mark.parametrize('name', ['lora', 'full'])
def test_it_begins_at_the_reference_and_learns_the_pairs(root, name):
  records = runs.metrics(root / name)
  train, evaluation = (
    [r for r in records if r['split'] == split] for split in ('train', 'eval')
  )
  assert all(_METRICS <= record.keys() for record in records)
  # The policy is its reference, whose pairs are as good as each other.
  assert train[0]['loss'] == pytest.approx(math.log(2), abs=1e-4)
  for metric in 'margin', 'chosen_reward', 'chosen_log_ratio':
    assert train[0][metric] == pytest.approx(0, abs=1e-3)
  assert train[-1]['loss'] < math.log(2) - 0.01
  assert train[-1]['margin'] > 0.01 and train[-1]['pairwise_accuracy'] > 0.8
  for record in train[-1], evaluation[-1]:
    assert record['chosen_log_ratio'] == pytest.approx(
      record['chosen_reward'] / 0.1, rel=1e-4
    )


def test_adapters_alone_are_kept(root):
  found = {
    name: tree_paths.flatten(
      step_files.read_trainable(
        step_files.find_step(str(root / name)), role='policy'
      )
    )
    for name in ('lora', 'full')
  }
  assert all(path.startswith('lora/') for path in found['lora'])
  assert all(path.startswith('params/') for path in found['full'])


def test_ipo_begins_where_its_lead_is_zero(root, tmp_path):
  path = tmp_path / 'ipo'
  settings = ("--gin.LOSS='ipo'", '--gin.BETA=0.5', '--gin.LABEL_SMOOTHING=0.1')
  assert main.run(_arguments(root, path, *settings)) == 0
  records = runs.metrics(path)
  # (0 - 1 / (2β))², however many pairs are swapped.
  assert records[0]['loss'] == pytest.approx(1.0, abs=1e-3)
  step = step_files.find_step(str(path))
  metadata = run_metadata.from_json(step_files.read_metadata(step), str(step))
  assert (metadata.kind, metadata.objective) == ('policy', 'ipo')
  assert metadata.settings['beta'] == 0.5
  assert metadata.settings['label_smoothing'] == 0.1


@pytest.mark.parametrize('name', ['lora', 'full'])
def test_the_policy_is_one_for_every_command(root, name, tmp_path, capsys):
  policy = root / name
  assert main.run(['inspect', f'--checkpoint={policy}']) == 0
  assert 'a policy (dpo)' in capsys.readouterr().out
  evaluate = [
    *('evaluate', f'--checkpoint={policy}', '--batch_size=8'),
    *('--gin_file=gin/demo/gold.gin', '--gin.EVAL_EXAMPLES=8'),
  ]
  assert main.run(evaluate) == 0
  found = json.loads((policy / 'eval.json').read_text())
  assert found['task'] == 'demo_rm' and 'judge_score' in found
  # To the reference, which the checkpoint names.
  assert found['kl_k1'] != 0 and math.isfinite(found['kl_k1'])
  rows = [{'prompt': 'todo: gym Tea', 'response': 'tea'}]
  flags = '--temperature=0', '--max_length=8', '--batch_size=1'
  (answer,) = runs.generate(policy, rows, tmp_path, *flags)
  (score,) = runs.score(policy, rows, tmp_path, '--batch_size=1')

  exported = tmp_path / 'hf'
  assert runs.convert(policy, exported, 'hf') == 0
  assert runs.generate(exported, rows, tmp_path, *flags) == [answer]
  (same,) = runs.score(exported, rows, tmp_path, '--batch_size=1')
  assert same['logprob'] == pytest.approx(score['logprob'], abs=1e-4)


def test_reinforcement_learning_goes_on_from_it(root, tmp_path):
  path = tmp_path / 'policy'
  gold = tmp_path / 'gold.gin'
  gold.write_text(
    'from __gin__ import dynamic_registration\n'
    'from tasks import demo\n'
    'REWARD_FUNCTIONS = (@demo.gold_scores,)\n'
  )
  runs.train(
    *('train_policy', 'attention', path, 'demo_prompts'),
    *('--gin_file=gin/rl/rloo.gin', f'--gin_file={gold}'),
    *('--gin.REWARD_CHECKPOINT=None', '--gin.EVAL_EXAMPLES=8'),
    start=root / 'lora',
    steps=1,
  )
  step = step_files.find_step(str(path))
  recorded = step_files.read_metadata(step)['policy']['reference']['path']
  assert recorded == str(step_files.find_step(str(root / 'lora')))


@pytest.mark.parametrize(
  ('setting', 'wanted'),
  [
    ("LOSS='ipo'", 'its objective is dpo, this run has ipo'),
    ('BETA=0.2', 'its settings.beta is 0.1, this run has 0.2'),
    ('LABEL_SMOOTHING=0.1', 'its settings.label_smoothing is 0.0'),
    ('TRAIN_PART=(0, 2)', 'its data_order.part is None'),
  ],
)
def test_a_run_with_other_settings_is_refused(root, capsys, setting, wanted):
  arguments = _arguments(root, root / 'lora', f'--gin.{setting}')
  assert main.run(arguments) == 2
  assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(
  ('more', 'wanted'),
  [
    (("--gin.LOSS='kto'",), ("LOSS is 'kto'", "'dpo', 'ipo'")),
    (('--gin.BETA=0',), ('BETA is 0', 'above 0')),
    (('--gin.LABEL_SMOOTHING=0.5',), ('LABEL_SMOOTHING is 0.5', 'below 0.5')),
    (
      ('--gin.DROPOUT_RATE=0.1',),
      ('T5Config.dropout_rate is 0.1', 'differ from its reference'),
    ),
    (
      ('--gin.LoraConfig.dropout_rate=0.1',),
      ('LoraConfig.dropout_rate is 0.1', 'Set it to 0'),
    ),
    (
      ('--gin.INITIAL_CHECKPOINT_PATH=None',),
      ('INITIAL_CHECKPOINT_PATH', 'train_sft'),
    ),
    (
      ("--gin.MIXTURE_OR_TASK_NAME='demo_sft'",),
      ("'demo_sft' is of the kind 'sft'", 'named *_rm'),
    ),
    (
      ("--gin.MIXTURE_OR_TASK_NAME='demo_rm_pointwise'",),
      ("the kind 'pointwise'", 'chosen, rejected'),
    ),
  ],
)
def test_mistakes_end_before_training(root, tmp_path, capsys, more, wanted):
  path = tmp_path / 'dpo'
  assert main.run(_arguments(root, path, *more)) == 2
  message = capsys.readouterr().err
  assert message.count('perlhf: error:') == 1 and 'Traceback' not in message
  for part in wanted:
    assert part in message
  assert not (path / 'checkpoints').exists()


def test_what_a_check_counts(root, tmp_path, capsys, monkeypatch):
  """The reference is held beside a fully tuned policy, and within LoRA's."""
  monkeypatch.chdir(tmp_path)
  held = {}
  for command in 'train_reward', 'train_dpo':
    for tuning in 'attention', 'none':
      arguments = runs.arguments(
        command, tuning, 'runs/a', 'demo_rm', start=root / 'sft'
      )
      assert main.run([*arguments, '--check']) == 0
      out = capsys.readouterr().out
      number, unit = out.partition('optimizer states take ')[2].split()[:2]
      assert unit == 'KiB'
      held[command, tuning] = float(number)
  # Four bytes a parameter; 13 of the weights and two moments are tuned.
  whole = held['train_reward', 'none'] / 3
  np.testing.assert_allclose(held['train_dpo', 'none'], 4 * whole, rtol=0.01)
  np.testing.assert_allclose(
    held['train_dpo', 'attention'], held['train_reward', 'attention'], rtol=0.02
  )
