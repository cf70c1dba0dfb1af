"""Policies tuned, evaluated, scored and used again, as a user does it."""

import json
import math
import shutil

import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loading
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.data import feature_converters
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.training import metric_writer
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

FEW = '--gin.EVAL_EXAMPLES=8'
GOLD = '--gin_file=gin/demo/gold.gin'
ROWS = [
  {'prompt': 'todo: gym Rent tea Call mail', 'response': 'rent, call'},
  {'prompt': 'todo: Lamp', 'response': 'lamp'},
]


def _policy(tuning, algorithm, model_dir, rewards, *more, **kwargs):
  paths = ', '.join(f"'{path}'" for path in rewards)
  runs.train(
    'train_policy',
    tuning,
    model_dir,
    'demo_prompts',
    f'--gin_file=gin/rl/{algorithm}.gin',
    f'--gin.REWARD_CHECKPOINT=[{paths}]',
    '--gin.LEARNING_RATE=1e-2',
    FEW,
    *more,
    **kwargs,
  )


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A chain of tiny runs.

  `sft` and its reward model `rm`; `full`, a policy tuned in full against it;
  `rm_full`, a reward model on that policy; `lora`, a policy of `sft` tuned
  against both reward models, the second with a backbone of its own.
  """
  root = tmp_path_factory.mktemp('policies')
  sft, full = root / 'sft', root / 'full'
  rms = [root / 'rm', root / 'rm_full']

  def reward(path, start):
    runs.train(
      'train_reward', 'attention', path, 'demo_rm', FEW, start=start, steps=1
    )

  runs.train('train_sft', 'none', sft, 'demo_sft', FEW, steps=1)
  reward(rms[0], sft)
  more = '--gin.NUM_SAMPLES=2', '--gin.IMPORTANCE_CAP=2.0'
  _policy('none', 'rloo', full, rms[:1], *more, start=sft, steps=3)
  reward(rms[1], full)
  _policy_of_both(root, root / 'lora')
  return root


def _policy_of_both(root, model_dir, **kwargs):
  rewards = root / 'rm', root / 'rm_full'
  minimum = '--gin.RewardSources.reduce="min"'
  more = rewards, GOLD, minimum
  _policy(
    'attention', 'reinforce', model_dir, *more, start=root / 'sft', **kwargs
  )


@pytest.fixture(scope='module')
def merged(root):
  """The policy with LoRA, as another stage starts from it."""
  return loading.load_merged(str(root / 'lora'), partitioning.make_mesh())


def _evaluate(checkpoint, *more):
  command = ['evaluate', '--gin_file=gin/runs/evaluate.gin', *more]
  assert main.run([*command, f'--checkpoint={checkpoint}']) == 0
  return json.loads((checkpoint / 'eval.json').read_text())


def test_a_run_leaves_what_is_promised(root):
  records = runs.metrics(root / 'lora')
  assert [r['step'] for r in records if r['split'] == 'train'] == [2, 4, 6]
  assert [r['step'] for r in records if r['split'] == 'eval'] == [3, 6]
  train, evaluation = records[0], records[1]
  assert {
    'loss',
    'policy_loss',
    'value_loss',
    'explained_variance',
    'grad_norm',
    'learning_rate',
    'score',
    'score_std',
    'kl_k1',
    'kl_k1_standard_error',
    'kl_k3',
    'kl_beta',
    'objective',
    'entropy',
    'response_length',
    'truncated',
    'ratio_deviation',
    'skipped',
    'skipped_in_a_row',
    'padding',
    *metric_writer.TIMING,
  } == set(train) - {'step', 'split'}
  leading = 'step', 'split', 'score', 'kl_k1', 'response_length', 'loss'
  assert tuple(train)[:6] == leading
  assert train['examples_per_second'] > 0
  assert all(np.isfinite(v) for k, v in train.items() if k != 'split')
  assert train['ratio_deviation'] < 1e-5
  assert set(evaluation) - {'step', 'split'} == {
    'score',
    'kl_k1',
    'kl_k3',
    'response_length',
    'truncated',
    'judge_score',
  }
  summary = json.loads((root / 'lora' / 'summary.json').read_text())
  assert summary['examples_per_second'] > 0
  assert summary['step_memory_bytes'] > 0
  assert 0 < summary['trainable_fraction'] < 0.5
  assert 'KL_BETA = 0.05' in (root / 'lora' / 'config.gin').read_text()
  full = runs.metrics(root / 'full')[0]
  assert 'value_loss' not in full and full['importance_capped'] == 0
  assert full['sampler_deviation'] < 1e-5


def test_lost_records_are_named_when_a_run_goes_on(root, tmp_path, caplog):
  run = tmp_path / 'lora'
  shutil.copytree(root / 'lora', run)
  for name, lost in ('metrics.jsonl', ('train', 4)), ('samples.jsonl', 3):
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
    kept = [
      line
      for line in lines
      if lost not in (line['step'], (line.get('split'), line['step']))
    ]
    assert len(kept) < len(lines)
    runs.write_rows(run / name, kept)
  _policy_of_both(root, run, steps=7)
  said = [r.getMessage() for r in caplog.records if 'lacks' in r.getMessage()]
  assert len(said) == 2
  assert any('metrics.jsonl lacks records of step 4.' in line for line in said)
  assert any('samples.jsonl lacks records of step 3.' in line for line in said)


def test_samples_are_logged_at_every_evaluation(root):
  lines = (root / 'lora' / 'samples.jsonl').read_text().split('\n')[:-1]
  rows = [json.loads(line) for line in lines]
  assert [row['step'] for row in rows] == [3] * 8 + [6] * 8
  names = ['score', 'kl_k1', 'kl_k3', 'response_length', 'truncated']
  names.append('judge_score')
  for row in rows:
    assert set(row) == {'step', 'prompt', 'response', *names}
  # The same prompts each time, that one can follow what becomes of them.
  prompts = [row['prompt'] for row in rows]
  assert prompts[:8] == prompts[8:] and len(set(prompts)) > 1
  assert all(prompt.startswith('todo: ') for prompt in prompts)
  # All eight validation examples are shown: their means are the metrics.
  for record in runs.metrics(root / 'lora'):
    if record['split'] == 'eval':
      own = [row for row in rows if row['step'] == record['step']]
      for name in names:
        mean = np.mean([row[name] for row in own])
        np.testing.assert_allclose(record[name], mean, rtol=1e-6)
  no_judge = (root / 'full' / 'samples.jsonl').read_text().split('\n')[0]
  assert 'judge_score' not in json.loads(no_judge)


def test_checkpoints_hold_what_was_trained(root):
  lora = step_files.read_trainable(step_files.find_step(str(root / 'lora')))
  assert {role: set(tree) for role, tree in lora.items()} == {
    'policy': {'lora'},
    'value': {'lora', 'heads'},
  }
  full = step_files.read_trainable(step_files.find_step(str(root / 'full')))
  assert {r: set(tree) for r, tree in full.items()} == {'policy': {'params'}}
  # The policy has moved, the backbone below it has not.
  before = loading.load_merged(str(root / 'sft'), partitioning.make_mesh())
  loaded = loading.load(str(root / 'lora'), partitioning.make_mesh())
  assert loaded.backbone_fingerprint == before.fingerprint
  b = [
    leaf
    for path, leaf in tree_paths.flatten(loaded.lora).items()
    if path.endswith('lora_b')
  ]
  assert b and all(leaf.any() for leaf in b)
  assert loaded.metadata.policy['reference'] == loaded.metadata.base
  assert loaded.metadata.policy['temperature'] == 0.9
  after = tree_paths.flatten(full['policy']['params'])
  for path, leaf in tree_paths.flatten(before.params).items():
    if 'relpos' not in path:  # Some distances do not occur.
      assert (leaf != after[path]).any(), path


def test_the_best_checkpoint_is_that_of_the_best_score(root):
  scores = {
    r['step']: r['score']
    for r in runs.metrics(root / 'lora')
    if r['split'] == 'eval'
  }
  best = step_files.find_step(str(root / 'lora' / 'checkpoints' / 'best'))
  assert int(best.name) == max(scores, key=scores.get)


def test_evaluation_of_a_policy(root):
  best = root / 'lora' / 'checkpoints' / 'best'
  assert (
    main.run(
      [
        'evaluate',
        '--gin_file=gin/runs/evaluate.gin',
        GOLD,
        f'--checkpoint={best}',
        f"--gin.BASELINE_CHECKPOINT='{root / 'sft'}'",
        '--gin.EVAL_EXAMPLES=11',  # The last batch is not full.
        '--batch_size=4',
      ]
    )
    == 0
  )
  result = json.loads((root / 'lora' / 'eval.json').read_text())
  assert result['task'] == 'demo_prompts' and result['split'] == 'test'
  assert result['examples'] == result['responses'] == 11
  assert result['temperature'] == 0.9
  assert np.isfinite([result['score'], result['kl_k1']]).all()
  assert 1 <= result['response_length'] <= 17 and 0 <= result['truncated'] <= 1
  assert result['judged_by'] == 'judge_score'
  wins, ties, losses = (result[k] for k in ('wins', 'ties', 'losses'))
  assert wins + ties + losses == 11
  assert result['win_rate'] == pytest.approx((wins + ties / 2) / 11)
  assert 'kl_k1' not in result['baseline'] and 'score' in result['baseline']
  assert len(result['samples']) == 8
  assert {'prompt', 'response', 'score', 'kl_k3', 'judge_score'} <= set(
    result['samples'][0]
  )
  assert 'rouge1' not in result  # The task has no targets.


def test_a_greedy_policy_ties_with_itself(root):
  result = _evaluate(
    root / 'full',
    '--gin.TEMPERATURE=0',
    f"--gin.BASELINE_CHECKPOINT='{root / 'full'}'",
    FEW,
  )
  assert result['temperature'] == 0 and result['judged_by'] == 'score'
  assert result['win_rate'] == 0.5 and result['ties'] == 8
  assert result['baseline']['score'] == result['score']
  # The reference of a policy tuned in full is another model: this is no 0.
  assert result['kl_k1'] != 0


def test_an_ensemble_is_the_mean_or_the_strictest(root):
  task = '--gin.MIXTURE_OR_TASK_NAME="demo_rm_pointwise"'
  first, second = (str(root / name) for name in ('rm', 'rm_full'))

  def scores(*flags):
    result = _evaluate(root / 'lora', FEW, task, *flags)
    # Judged responses are no targets: half of them are bad.
    assert result['task'] == 'demo_rm_pointwise' and 'rouge1' not in result
    return np.array([row['score'] for row in result['samples']])

  strictest = scores()  # As it was trained.
  mean = scores(f"--gin.REWARD_CHECKPOINT=['{first}', '{second}']")
  alone = scores(f"--gin.REWARD_CHECKPOINT='{first}'")
  other = 2 * mean - alone
  assert np.abs(other - alone).max() > 0.01
  np.testing.assert_allclose(
    strictest, np.minimum(alone, other), rtol=1e-4, atol=1e-5
  )


def test_the_best_of_several_samples(root):
  several = '--gin.NUM_SAMPLES=5', '--gin.EVAL_EXAMPLES=7', '--batch_size=4'
  result = _evaluate(root / 'lora', GOLD, *several)
  assert result['examples'] == 7 and result['responses'] == 35
  samples = result['samples']
  # The samples of a prompt follow each other, and differ.
  assert len({row['prompt'] for row in samples[:5]}) == 1
  assert samples[5]['prompt'] != samples[0]['prompt']
  assert len({row['response'] for row in samples[:5]}) > 1
  curve = result['best_of']
  assert curve['n'] == [1, 2, 4, 5]
  np.testing.assert_allclose(
    curve['kl'], [math.log(n) - (n - 1) / n for n in curve['n']]
  )
  for name in ('score', 'judge_score', 'response_length'):
    assert curve[name][0] == pytest.approx(result[name], rel=1e-6)
  assert curve['score'] == sorted(curve['score'])
  assert curve['score'][-1] > curve['score'][0]
  # The same samples, chosen by another reward, are judged as before.
  other = f"--gin.REWARD_CHECKPOINT='{root / 'rm_full'}'"
  again = _evaluate(root / 'lora', GOLD, other, *several)
  assert [row['response'] for row in again['samples']] == [
    row['response'] for row in samples
  ]
  assert again['judge_score'] == result['judge_score']
  assert again['best_of']['judge_score'][0] == curve['judge_score'][0]


@pytest.mark.parametrize(
  ('checkpoint', 'more', 'wanted'),
  [
    ('lora', ('--gin.TEMPERATURE=0',), 'the temperature is 0'),
    ('sft', (), 'nothing says which response is the best'),
    ('rm', (), 'NUM_SAMPLES: only the evaluation of policies'),
    (
      'lora',
      ("--gin.BASELINE_CHECKPOINT='{root}/sft'",),
      'a win rate compares one response per prompt',
    ),
  ],
)
def test_the_best_of_nothing(root, capsys, checkpoint, more, wanted):
  flags = [flag.format(root=root) for flag in more]
  command = ['evaluate', f'--checkpoint={root / checkpoint}', FEW, *flags]
  assert main.run([*command, '--gin.NUM_SAMPLES=3']) == 2
  assert wanted in capsys.readouterr().err


def test_evaluation_of_demonstrations(root):
  result = _evaluate(root / 'sft', FEW)
  assert result['task'] == 'demo_sft' and result['temperature'] == 1.0
  for name in ('exact_match', 'rouge1', 'rouge2', 'rougeL'):
    assert 0 <= result[name] <= 1
  assert 'score' not in result and 'kl_k1' not in result


def _teacher_forced(model, variables, backbone, row):
  prompt = feature_converters.tokenize(backbone.vocabulary, row['prompt'])[None]
  response = feature_converters.tokenize(backbone.vocabulary, row['response'])[
    None, None
  ]
  logprobs = policy_lib.response_logprobs(
    model, variables, prompts_lib.of_tokens(prompt), response
  )
  return float(np.sum(np.float64(logprobs)))


def test_scores_of_a_policy_are_its_log_probabilities(root, merged, tmp_path):
  loaded = loading.load(str(root / 'lora'), partitioning.make_mesh())
  backbone = loaded.backbone()
  paths = encoder_decoder.dense_module_paths(backbone.config)
  adapters = lora_lib.resolve(loaded.metadata.lora, paths)
  model = t5.T5(backbone.config, adapters)
  variables = {'params': backbone.params, 'lora': loaded.lora}
  scored = runs.score(root / 'lora', ROWS[:1], tmp_path)
  wanted = _teacher_forced(model, variables, backbone, ROWS[0])
  assert scored[0]['logprob'] == pytest.approx(wanted, abs=1e-3)
  # Merged, as another stage would start from it, it says the same.
  assert merged.fingerprint != backbone.fingerprint
  bare = t5.T5(merged.config)
  again = _teacher_forced(bare, {'params': merged.params}, merged, ROWS[0])
  assert again == pytest.approx(wanted, abs=1e-3)
  other = _teacher_forced(bare, {'params': backbone.params}, backbone, ROWS[0])
  assert abs(other - wanted) > 1e-2


def test_a_policy_is_a_start_of_other_stages(root, merged):
  step = str(root / 'full' / 'checkpoints' / '3')
  policy = loading.load_merged(str(root / 'full'), partitioning.make_mesh())
  metadata = loading.load(
    str(root / 'rm_full'), partitioning.make_mesh()
  ).metadata
  assert metadata.base == {
    'path': step,
    'relative_path': '../full/checkpoints/3',
    'fingerprint': policy.fingerprint,
  }
  # What is merged is a model like any other.
  assert merged.path == str(root / 'lora' / 'checkpoints' / '6')
  own, base = tree_paths.flatten(merged.params), root / 'sft'
  before = tree_paths.flatten(
    loading.load_merged(str(base), partitioning.make_mesh()).params
  )
  changed = {path for path, leaf in before.items() if (leaf != own[path]).any()}
  assert set(own) == set(before)
  assert changed == {
    path for path in before if 'attention/' in path and path.endswith('kernel')
  }


def test_generation_by_a_policy(root, tmp_path):
  prompts = [{'prompt': row['prompt']} for row in ROWS]
  rows = runs.generate(root / 'full', prompts, tmp_path, '--temperature=0')
  assert [row['prompt'] for row in rows] == [row['prompt'] for row in ROWS]
  assert all(isinstance(row['response'], str) for row in rows)


def test_a_reference_that_has_moved(root, capsys):
  sft, moved = root / 'sft', root / 'moved'
  sft.rename(moved)
  command = ['evaluate', f'--checkpoint={root / "full"}', FEW]
  try:
    assert main.run(command) == 2
    message = capsys.readouterr().err
    assert str(sft) in message and '--base_checkpoint' in message
    command.append(f'--base_checkpoint={moved}')
    # Its reward model was trained on that reference, and finds it here.
    assert main.run(command) == 0
    (root / 'rm').rename(root / 'lost')
    assert main.run(command) == 2
    message = capsys.readouterr().err
    assert str(root / 'rm') in message and 'REWARD_CHECKPOINT' in message
    other = f"--gin.REWARD_CHECKPOINT='{root / 'rm_full'}'"
    assert main.run([*command, other]) == 0
  finally:
    moved.rename(sft)
    (root / 'lost').rename(root / 'rm')
