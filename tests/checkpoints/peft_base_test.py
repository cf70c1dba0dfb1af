"""`--base_checkpoint` says where the base of a PEFT directory is."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loading
from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.training import partitioning

_GOLDENS = pathlib.Path(__file__).parents[1] / 'golden'
_T5 = _GOLDENS / 'hf_t5_v1_1'
_ROWS = [
  {'prompt': 'todo: gym', 'response': 'gym'},
  {'prompt': 'todo: call mum, buy milk', 'response': 'call mum'},
]


def _logprobs(checkpoint, tmp_path, *more):
  rows = runs.score(checkpoint, _ROWS, tmp_path, *more)
  return [row['logprob'] for row in rows]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A PEFT directory whose base has moved, and what it gave before."""
  root = tmp_path_factory.mktemp('world')
  base = shutil.copytree(_T5, root / 'base')
  runs.train_on('train_sft', 'demo_sft', base, root / 'sft')
  assert runs.convert(root / 'sft', root / 'peft', 'peft') == 0
  before = _logprobs(root / 'peft', root)
  assert np.abs(np.subtract(before, _logprobs(base, root))).min() > 1e-4
  base.rename(root / 'moved')
  assert runs.convert(_T5, root / 'ours', 'perlhf') == 0
  return root, before


@pytest.mark.parametrize('base', ['moved', 'ours'])
def test_a_base_that_moved_is_found(base, world, tmp_path):
  root, before = world
  flag = f'--base_checkpoint={root / base}'
  np.testing.assert_allclose(
    _logprobs(root / 'peft', tmp_path, flag), before, rtol=1e-6
  )


def test_without_it_the_message_says_what_to_do(world, tmp_path, capfd):
  root, _ = world
  assert main.run(['inspect', f'--checkpoint={root / "peft"}']) == 2
  message = capfd.readouterr().err
  for part in (root / 'peft', root / 'base', '--base_checkpoint=DIR'):
    assert str(part) in message
  flag = f'--base_checkpoint={root / "moved"}'
  assert main.run(['inspect', f'--checkpoint={root / "peft"}', flag]) == 0
  assert 'LoRA of rank' in capfd.readouterr().out


def test_a_name_of_the_hub_or_none_will_do(world, tmp_path):
  root, before = world
  flag = f'--base_checkpoint={root / "moved"}'
  for name in 'google/flan-t5-base', None:
    peft = shutil.copytree(root / 'peft', tmp_path / str(bool(name)))
    config = json.loads((peft / 'adapter_config.json').read_text())
    config['base_model_name_or_path'] = name
    (peft / 'adapter_config.json').write_text(json.dumps(config))
    with pytest.raises(errors.CheckpointError, match=r'--base_checkpoint=DIR'):
      loading.peek(str(peft))
    numbers = _logprobs(peft, tmp_path, flag)
    np.testing.assert_allclose(numbers, before, rtol=1e-6)


def test_a_base_of_another_shape_is_refused(world, tmp_path):
  root, _ = world
  other = _GOLDENS / 'hf_t5_v1_0'
  mesh = partitioning.make_mesh()
  for load in (
    lambda path: loading.load(path, mesh, str(other)),
    lambda path: loading.peek(path, str(other)),
  ):
    with pytest.raises(errors.CheckpointError, match='does not fit') as caught:
      load(str(root / 'peft'))
    assert str(root / 'peft') in str(caught.value)
    assert str(other) in str(caught.value)


def test_a_written_adapter_names_where_its_base_is_now(world, tmp_path):
  root, before = world
  flag = f'--base_checkpoint={root / "moved"}'
  assert runs.convert(root / 'peft', tmp_path / 'again', 'peft', flag) == 0
  np.testing.assert_allclose(
    _logprobs(tmp_path / 'again', tmp_path), before, rtol=1e-6
  )


def test_training_starts_from_it_and_remembers(world, tmp_path):
  root, _ = world
  setting = f"--gin.BASE_CHECKPOINT_PATH='{tmp_path / 'given'}'"
  shutil.copytree(root / 'moved', tmp_path / 'given')
  start = shutil.copytree(root / 'peft', tmp_path / 'peft')
  run = runs.train_on('train_sft', 'demo_sft', start, tmp_path / 'run', setting)
  before = _logprobs(run, tmp_path)
  assert np.isfinite(before).all()
  # The tree is moved as a whole.
  tree = shutil.move(tmp_path / 'run', tmp_path / 'tree/run')
  for name in 'peft', 'given':
    (tmp_path / name).rename(tmp_path / 'tree' / name)
  np.testing.assert_allclose(_logprobs(tree, tmp_path), before, rtol=1e-6)
