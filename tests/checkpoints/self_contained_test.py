"""`perlhf convert --to=perlhf`: one checkpoint that needs no other."""

import pathlib
import resource
import shutil

import golden_pali
import jax
import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loading
from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.stages import convert
from perlhf_jax.training import partitioning

_GOLDENS = pathlib.Path(__file__).parents[1] / 'golden'
_T5 = _GOLDENS / 'hf_t5_v1_1'
_ROWS = [
  {'prompt': 'todo: gym', 'response': 'gym'},
  {'prompt': 'todo: call mum, buy milk', 'response': 'call mum'},
]
_POLICY = (
  '--gin_file=gin/rl/reinforce.gin',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 6}",
)


def _numbers(checkpoint, tmp_path):
  rows = runs.score(checkpoint, _ROWS, tmp_path)
  return [row.get('score', row.get('logprob')) for row in rows]


def _load(path):
  return loading.load(str(path), partitioning.make_mesh())


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """Adapters, what is made of them, and their numbers; the base is gone."""
  root = tmp_path_factory.mktemp('world')
  base = shutil.copytree(_T5, root / 'base')
  runs.train_on('train_sft', 'demo_sft', base, root / 'sft')
  runs.train_on('train_reward', 'demo_rm', base, root / 'rm')
  rewards = f"--gin.REWARD_CHECKPOINT='{root / 'rm'}'"
  runs.train_on(
    *('train_policy', 'demo_prompts', base, root / 'policy'), *_POLICY, rewards
  )
  assert runs.convert(root / 'sft', root / 'peft', 'peft') == 0
  numbers = {}
  for name in ('sft', 'rm', 'policy', 'peft'):
    numbers[name] = _numbers(root / name, root)
    assert runs.convert(root / name, root / f'whole_{name}', 'perlhf') == 0
  for name in ('sft', 'rm', 'policy', 'peft', 'base'):
    (root / name).rename(root / f'{name}_away')
  return root, numbers


@pytest.mark.parametrize('name', ['sft', 'rm', 'policy', 'peft'])
def test_adapters_become_whole_models(name, world, tmp_path):
  root, numbers = world
  with pytest.raises(errors.CheckpointError, match='base'):
    _load(root / f'{name}_away')
  np.testing.assert_allclose(
    _numbers(root / f'whole_{name}', tmp_path), numbers[name], atol=1e-4
  )
  # Or the comparison would show nothing.
  if name != 'rm':
    start = _numbers(_T5, tmp_path)
    assert np.abs(np.subtract(numbers[name], start)).min() > 1e-4
  whole = _load(root / f'whole_{name}')
  assert (whole.lora, whole.base, whole.tuned) == (None, None, {})
  assert whole.vocabulary == _load(_T5).vocabulary


def test_what_training_said_comes_along(world):
  root, _ = world
  for name in ('sft', 'rm', 'policy'):
    whole = loading.peek(str(root / f'whole_{name}'))
    run = loading.peek(str(root / f'{name}_away'))
    assert whole.step == run.step == 3
    assert (whole.kind, whole.lengths) == (run.kind, run.lengths)
    assert whole.truncate_prompt == run.truncate_prompt
    assert str(whole) == str(run).replace('LoRA', 'LoRA, merged')
  # Of the policy, the last one.
  assert whole.lengths['targets'] == 6
  assert set(whole.metadata.policy) == set(run.metadata.policy) - {
    'reference',
    'reward_checkpoints',
  }


def test_inspect_says_what_it_was_made_of(world, capsys):
  root, _ = world
  assert main.run(['inspect', f'--checkpoint={root / "whole_rm"}']) == 0
  printed = capsys.readouterr().out
  for part in (
    'perlhf, a pairwise reward model, LoRA, merged, step 3',
    f'a pairwise reward model, LoRA, step 3 ({root}/rm/checkpoints/3)',
    'trained on',
  ):
    assert part in printed
  assert 'base:' not in printed and 'adapters:' not in printed


def test_every_command_takes_it(world, tmp_path):
  root, _ = world
  policy = runs.train_on(
    *('train_policy', 'demo_prompts', root / 'whole_sft', tmp_path / 'policy'),
    *_POLICY,
    f"--gin.REWARD_CHECKPOINT='{root / 'whole_rm'}'",
  )
  assert (
    _load(policy).backbone_fingerprint == _load(root / 'whole_sft').fingerprint
  )
  few = '--gin.EVAL_EXAMPLES=8'
  for name in ('whole_rm', 'whole_policy'):
    command = ['evaluate', f'--checkpoint={root / name}', '--batch_size=8', few]
    if name == 'whole_policy':
      command.append(f"--gin.REWARD_CHECKPOINT='{root / 'whole_rm'}'")
    assert main.run(command) == 0
    assert (root / name / 'eval.json').exists()
  assert runs.generate(root / 'whole_policy', _ROWS, tmp_path)[0]['response']


def test_full_runs_come_back_exactly(tmp_path):
  run = runs.train_on(
    'train_sft', 'demo_sft', _T5, tmp_path / 'run', tuning='none'
  )
  assert runs.convert(run, tmp_path / 'whole', 'perlhf') == 0
  first, last = _load(run), _load(tmp_path / 'whole')
  assert last.fingerprint == first.fingerprint
  assert (last.config, str(last)) == (first.config, str(first))
  jax.tree.map(np.testing.assert_array_equal, last.params, first.params)


@pytest.mark.parametrize('name', ['hf_t5_v1_1', 'hf_t5_umt5', 'hf_pali'])
def test_directories_of_others_come_in_exactly(name, tmp_path):
  source = _GOLDENS / name
  if name == 'hf_pali':
    source = golden_pali.copy(tmp_path / 'pali')
  assert runs.convert(source, tmp_path / 'ours', 'perlhf') == 0
  first, last = _load(source), _load(tmp_path / 'ours')
  assert last.fingerprint == first.fingerprint
  assert (last.config, last.vocabulary) == (first.config, first.vocabulary)
  assert (last.kind, dict(last.lengths), last.step) == (None, {}, 0)
  assert str(last) == 'a language model'
  jax.tree.map(np.testing.assert_array_equal, last.params, first.params)


def test_a_t5x_checkpoint_gets_its_vocabulary(tmp_path):
  assert runs.convert(_T5, tmp_path / 't5x', 't5x') == 0
  flags = ('--vocabulary=byte', '--extra_ids=125')
  ours = tmp_path / 'ours'
  assert runs.convert(tmp_path / 't5x', ours, 'perlhf', *flags) == 0
  assert _load(ours).fingerprint == _load(_T5).fingerprint
  np.testing.assert_allclose(
    _numbers(ours, tmp_path), _numbers(_T5, tmp_path), rtol=1e-6
  )
  # Nothing says on what to evaluate it.
  assert main.run(['evaluate', f'--checkpoint={ours}']) == 2


def test_it_is_no_run_to_go_on_with(tmp_path, capfd):
  assert runs.convert(_T5, tmp_path / 'ours', 'perlhf') == 0
  arguments = runs.arguments(
    'train_sft', 'none', tmp_path / 'ours', 'demo_sft', start=_T5
  )
  assert main.run(arguments) == 2
  assert 'as INITIAL_CHECKPOINT_PATH' in capfd.readouterr().err


def test_what_is_there_stays(tmp_path, capfd):
  (tmp_path / 'mine.txt').write_text('mine')
  assert runs.convert(_T5, tmp_path, 'perlhf') == 2
  assert 'is not empty' in capfd.readouterr().err
  assert runs.convert(_T5, tmp_path, 'perlhf', '--overwrite') == 2
  assert 'leave out --overwrite' in capfd.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


# Threads of Orbax outlive what failed.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_full_disk_leaves_nothing(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
  try:
    with pytest.raises(errors.CheckpointError, match='nothing was left there'):
      convert.convert(source=str(_T5), target=str(tmp_path / 'a'), to='perlhf')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not list(tmp_path.glob('a/*'))
  assert runs.convert(_T5, tmp_path / 'a', 'perlhf') == 0
