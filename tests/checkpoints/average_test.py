"""`perlhf average`: the mean of the weights, and what it refuses."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loading
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.training import partitioning

_GOLDENS = pathlib.Path(__file__).parents[1] / 'golden'
_ROWS = [
  {'prompt': 'todo: gym', 'response': 'gym'},
  {'prompt': 'todo: call mum, buy milk', 'response': 'call mum'},
]
# Of each: rank, alpha, whether the scale is alpha / sqrt(rank), seed.
_ADAPTERS = ((2, None, False, 0), (3, 7.5, False, 1), (4, 2.0, True, 2))


def _train(command, task, base, folder, seed, *more, tuning='attention'):
  more = *more, f'--gin.RANDOM_SEED={seed}', '--gin.LEARNING_RATE=3e-2'
  return runs.train_on(command, task, base, folder, *more, tuning=tuning)


def _average(checkpoints, target, *flags):
  names = ','.join(map(str, checkpoints))
  flags = f'--checkpoints={names}', f'--target={target}', *flags
  return main.run(['average', *flags])


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'base'
  return shutil.copytree(_GOLDENS / 'hf_t5_v1_1', folder)


@pytest.fixture(scope='module')
def adapters(base, tmp_path_factory):
  folder = tmp_path_factory.mktemp('adapters')
  return [
    _train(
      *('train_reward', 'demo_rm', base, folder / str(seed), seed),
      f'--gin.LORA_RANK={rank}',
      f'--gin.LORA_ALPHA={alpha}',
      f'--gin.LoraConfig.rs_lora={rs_lora}',
    )
    for rank, alpha, rs_lora, seed in _ADAPTERS
  ]


@pytest.fixture(scope='module')
def full(base, tmp_path_factory):
  folder = tmp_path_factory.mktemp('full')
  return [
    _train(
      *('train_sft', 'demo_sft', base, folder / str(seed), seed), tuning='none'
    )
    for seed in range(2)
  ]


def _whole(path):
  """All weights of a checkpoint, with adapters merged, by path."""
  mesh = partitioning.make_mesh()
  loaded = loading.merged(loading.load(str(path), mesh), mesh)
  params = tree_paths.flatten({'params': loaded.params, 'heads': loaded.heads})
  return jax.tree.map(np.asarray, params)


def _assert_mean(average, parts):
  wholes = [_whole(part) for part in parts]
  found = _whole(average)
  assert found.keys() == wholes[0].keys()
  changed = 0
  for name, leaf in found.items():
    leaves = [whole[name].astype(np.float64) for whole in wholes]
    np.testing.assert_allclose(leaf, np.mean(leaves, axis=0), atol=1e-6)
    changed += np.abs(leaves[0] - leaves[1]).max() > 1e-3
  # Or the comparison would show nothing.
  assert changed > 3


def test_adapters_of_several_ranks_average_exactly(adapters, tmp_path):
  assert _average(adapters, tmp_path / 'mean') == 0
  _assert_mean(tmp_path / 'mean', adapters)
  peeked = loading.peek(str(tmp_path / 'mean'))
  assert peeked.lora_config.rank == 2 + 3 + 4
  assert peeked.lora_config.scale == 1
  assert peeked.metadata.made_of.count('reward model, LoRA') == 3
  scores = runs.score(tmp_path / 'mean', _ROWS, tmp_path)
  assert len({row['score'] for row in scores}) == 2


def test_the_average_finds_its_base_after_a_move(base, adapters, tmp_path):
  here = tmp_path / 'here'
  shutil.copytree(base, here / 'base')
  for number, adapter in enumerate(adapters[:2]):
    shutil.copytree(adapter, here / 'runs' / str(number))
  flag = f'--base_checkpoint={here / "base"}'
  parts = [here / 'runs' / '0', here / 'runs' / '1']
  assert _average(parts, here / 'mean', flag) == 0
  expected = runs.score(here / 'mean', _ROWS, tmp_path)
  assert runs.score(here / 'mean', _ROWS, tmp_path, flag) == expected


def test_models_tuned_in_full_average(full, tmp_path):
  assert _average(full, tmp_path / 'mean') == 0
  _assert_mean(tmp_path / 'mean', full)


def test_a_run_does_not_go_on_with_an_average(base, adapters, tmp_path, capfd):
  assert _average(adapters[:2], tmp_path / 'mean') == 0
  arguments = runs.arguments(
    *('train_reward', 'attention', tmp_path / 'mean', 'demo_rm'), start=base
  )
  assert main.run(arguments) == 2
  assert 'perlhf average made' in capfd.readouterr().err


def _error(capfd, checkpoints, target):
  capfd.readouterr()
  assert _average(checkpoints, target) == 2
  err = capfd.readouterr().err
  assert 'Traceback' not in err
  assert not target.exists()
  return err


def test_other_checkpoints_are_refused(base, adapters, full, tmp_path, capfd):
  target = tmp_path / 'mean'
  assert 'at least two' in _error(capfd, adapters[:1], target)
  assert 'commas is empty' in _error(capfd, [adapters[0], ''], target)
  assert 'Only a MODEL_DIR' in _error(capfd, [base, *adapters], target)
  assert 'differ in kind' in _error(capfd, [adapters[0], full[0]], target)
  # A base of the same shapes and other weights.
  other = _train('train_reward', 'demo_rm', full[0], tmp_path / 'other', 0)
  error = _error(capfd, [adapters[0], other], target)
  assert 'differ in base' in error
  assert str(adapters[0]) in error and str(other) in error
  (tmp_path / 'there').mkdir()
  (tmp_path / 'there' / 'file').touch()
  assert _average(adapters, tmp_path / 'there') == 2
  assert 'is not empty' in capfd.readouterr().err
