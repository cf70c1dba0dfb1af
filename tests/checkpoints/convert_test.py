"""`perlhf convert` and `perlhf inspect`: out, in again, and the same."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loading
from perlhf_jax.cli import main
from perlhf_jax.training import partitioning

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/hf_t5_v1_1'
_ROWS = [
  {'prompt': 'todo: gym', 'response': 'gym'},
  {'prompt': 'todo: call mum, buy milk', 'response': 'call mum'},
]


def _logprobs(checkpoint, tmp_path):
  return [row['logprob'] for row in runs.score(checkpoint, _ROWS, tmp_path)]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return shutil.copytree(_GOLDEN, tmp_path_factory.mktemp('base') / 'base')


@pytest.fixture(scope='module')
def adapter(base, tmp_path_factory):
  folder = tmp_path_factory.mktemp('adapter') / 'sft'
  return runs.train_on('train_sft', 'demo_sft', base, folder)


@pytest.fixture(scope='module')
def reward(base, tmp_path_factory):
  folder = tmp_path_factory.mktemp('reward') / 'rm'
  return runs.train_on('train_reward', 'demo_rm', base, folder)


def test_hf_to_t5x_and_back_is_exact(tmp_path):
  assert runs.convert(_GOLDEN, tmp_path / 't5x', 't5x') == 0
  flags = ('--vocabulary=byte', '--extra_ids=125')
  assert runs.convert(tmp_path / 't5x', tmp_path / 'hf', 'hf', *flags) == 0
  mesh = partitioning.make_mesh()
  first, last = (
    loading.load(str(path), mesh) for path in (_GOLDEN, tmp_path / 'hf')
  )
  assert last.fingerprint == first.fingerprint
  assert last.config.architecture() == first.config.architecture()
  jax.tree.map(np.testing.assert_array_equal, last.params, first.params)


@pytest.mark.parametrize('to', ['hf', 'peft'])
def test_adapters_go_out_and_score_the_same(to, adapter, tmp_path):
  assert runs.convert(adapter, tmp_path / to, to) == 0
  wanted = _logprobs(adapter, tmp_path)
  np.testing.assert_allclose(
    _logprobs(tmp_path / to, tmp_path), wanted, atol=1e-4
  )
  # Or the comparison would show nothing.
  assert np.abs(np.subtract(wanted, _logprobs(_GOLDEN, tmp_path))).min() > 1e-3


@pytest.mark.parametrize('to', ['hf', 'peft'])
def test_reward_models_go_out_with_their_head(to, reward, tmp_path):
  assert runs.convert(reward, tmp_path / to, to) == 0
  scores = [
    [row['score'] for row in runs.score(path, _ROWS, tmp_path)]
    for path in (reward, tmp_path / to)
  ]
  np.testing.assert_allclose(*scores, atol=1e-4)


def test_peft_adapters_are_trained_on(adapter, tmp_path):
  assert runs.convert(adapter, tmp_path / 'peft', 'peft') == 0
  run = runs.train_on(
    'train_sft', 'demo_sft', tmp_path / 'peft', tmp_path / 'run'
  )
  assert np.isfinite(_logprobs(run, tmp_path)).all()


def test_t5x_checkpoints_are_trained_on(tmp_path, capfd):
  assert runs.convert(_GOLDEN, tmp_path / 't5x', 't5x') == 0
  arguments = runs.arguments(
    *('train_sft', 'attention', tmp_path / 'run', 'demo_sft'),
    '--gin.MODEL=None',
    start=tmp_path / 't5x',
    steps=2,
  )
  assert main.run([*arguments, '--gin.VOCABULARY=None']) == 2
  assert 'gin/vocabularies' in capfd.readouterr().err
  assert main.run([*arguments, '--gin_file=gin/vocabularies/byte.gin']) == 0
  # The adapter has the vocabulary that its base lacks.
  assert np.isfinite(_logprobs(tmp_path / 'run', tmp_path)).all()


def test_inspect_says_what_it_is(adapter, tmp_path, capsys):
  assert runs.convert(_GOLDEN, tmp_path / 't5x', 't5x') == 0
  capsys.readouterr()
  expected = {
    adapter: ('perlhf, an SFT model, LoRA, step 3', 'LoRA of rank', '/base ('),
    _GOLDEN: ('hf, a Hugging Face T5 directory', '23,664', 'MiB in'),
    tmp_path / 't5x': ('t5x, a T5X checkpoint', '23,664'),
  }
  for path, parts in expected.items():
    assert main.run(['inspect', f'--checkpoint={path}']) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in parts), printed


@pytest.mark.parametrize(
  ('to', 'flags', 'parts'),
  [
    ('onnx', (), ('--to=onnx', 'hf, peft, perlhf, t5x')),
    ('peft', (), ('has no adapters', '--to=hf')),
    ('t5x', ('--overwrite',), ('new folder', '--overwrite')),
    ('hf', ('--dtype=int8',), ('int8', 'bfloat16')),
    ('hf', ('--vocabulary=none.model',), ('none.model',)),
  ],
)
def test_what_cannot_be_written(to, flags, parts, tmp_path, capfd):
  assert runs.convert(_GOLDEN, tmp_path / 'out', to, *flags) == 2
  message = capfd.readouterr().err
  assert all(part in message for part in parts), message
  assert 'Traceback' not in message
  assert not (tmp_path / 'out').exists()


def test_a_target_is_replaced_only_if_asked_for(tmp_path, capfd):
  target = tmp_path / 'out'
  assert runs.convert(_GOLDEN, target, 'hf') == 0
  assert runs.convert(_GOLDEN, target, 'hf') == 2
  assert '--overwrite' in capfd.readouterr().err
  assert runs.convert(_GOLDEN, target, 'hf', '--overwrite') == 0


def test_a_t5x_checkpoint_needs_a_vocabulary(tmp_path, capfd):
  assert runs.convert(_GOLDEN, tmp_path / 't5x', 't5x') == 0
  assert runs.convert(tmp_path / 't5x', tmp_path / 'hf', 'hf') == 2
  assert '--vocabulary' in capfd.readouterr().err
