"""DoRA through the commands: trained, resumed, merged, written for PEFT."""

import dataclasses
import pathlib

import numpy as np
import pytest
import runs
import tiny_metadata

from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

_T5 = str(pathlib.Path(__file__).parents[1] / 'golden' / 'hf_t5_v1_1')
_ROWS = [{'prompt': 'abc', 'response': 'de'}, {'prompt': 'f', 'response': ''}]
_MORE = (
  '--gin.LoraConfig.dora=True',
  '--gin.T5Config.scan_layers=True',
  '--gin.Optimizer.lora_b_ratio=4',
)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A base, and a reward model that resumed once."""
  root = tmp_path_factory.mktemp('dora')
  runs.train('train_sft', 'none', root / 'sft', 'demo_sft', steps=1)
  for steps in (3, 6):
    runs.train(
      'train_reward',
      'all_linear',
      root / 'rm',
      'demo_rm',
      *_MORE,
      start=root / 'sft',
      steps=steps,
    )
  return root


def _weights(folder, step=None):
  step = step_files.find_step(str(folder)) if step is None else step
  return tree_paths.flatten(step_files.read_trainable(step))


def test_magnitudes_start_at_the_norms_of_the_base_and_move(world):
  flat = _weights(world / 'rm')
  magnitudes = {p: x for p, x in flat.items() if p.endswith('lora_m')}
  assert len(magnitudes) == 7 + 11
  base = _weights(world / 'sft')
  for path, leaf in magnitudes.items():
    path = path.removeprefix('lora/').removesuffix('lora/lora_m')
    kernel = base['params/' + path.replace('/layers/', '/layers_0/') + 'kernel']
    norms = np.sqrt(np.square(np.float64(kernel)).sum(0))
    assert leaf.shape == (1, len(norms))
    # A few steps of AdamW at 1e-3: near the start, and not at it.
    moved = np.abs(leaf[0] - norms)
    assert 1e-6 < moved.max() < 0.02


def test_merged_scores_are_the_adapters(world, tmp_path, capsys):
  assert runs.convert(world / 'rm', tmp_path / 'whole', 'perlhf') == 0
  scores = [
    [row['score'] for row in runs.score(path, _ROWS, tmp_path)]
    for path in (world / 'rm', tmp_path / 'whole')
  ]
  np.testing.assert_allclose(*scores, atol=1e-5)
  capsys.readouterr()
  assert main.run(['inspect', f'--checkpoint={world / "rm"}']) == 0
  assert 'DoRA of rank 8, scale 1' in capsys.readouterr().out


def test_an_average_is_refused_until_they_are_merged(world, tmp_path, capsys):
  def average(*paths):
    names = ','.join(map(str, paths))
    target = f'--target={tmp_path / "mean"}'
    return main.run(['average', f'--checkpoints={names}', target])

  steps = [world / 'rm' / 'checkpoints' / step for step in ('3', '6')]
  assert average(*steps) == 2
  message = capsys.readouterr().err
  assert 'has DoRA adapters' in message and 'Traceback' not in message
  wholes = [tmp_path / 'a', tmp_path / 'b']
  for step, whole in zip(steps, wholes, strict=True):
    assert runs.convert(step, whole, 'perlhf') == 0
  assert average(*wholes) == 0
  mean, *parts = (_weights(path) for path in (tmp_path / 'mean', *wholes))
  path = 'params/decoder/layers_0/mlp/wo/kernel'
  path = path if path in mean else path.replace('layers_0', 'layers')
  np.testing.assert_allclose(
    mean[path], (parts[0][path] + parts[1][path]) / 2, atol=1e-6
  )


def test_to_peft_and_back(tmp_path):
  """A reward model of DoRA on a Hugging Face base, as a PEFT directory."""
  runs.train_on(
    'train_reward',
    'demo_rm',
    _T5,
    tmp_path / 'rm',
    '--gin.LoraConfig.dora=True',
  )
  assert runs.convert(tmp_path / 'rm', tmp_path / 'peft', 'peft') == 0
  ours, theirs = (
    loading.load(str(path), partitioning.make_mesh((-1, 1, 1)))
    for path in (tmp_path / 'rm', tmp_path / 'peft')
  )
  assert theirs.lora_config.dora and theirs.kind == ours.kind
  lora = tree_paths.flatten(ours.lora)
  for path, leaf in tree_paths.flatten(theirs.lora).items():
    np.testing.assert_array_equal(leaf, lora[path])
  assert sum(path.endswith('lora_m') for path in lora) * 3 == len(lora)


def test_metadata_of_before_there_was_dora():
  written = run_metadata.to_json(tiny_metadata.METADATA)
  assert written['lora']['dora'] is False
  del written['lora']['dora']
  assert run_metadata.from_json(written, 'here') == tiny_metadata.METADATA
  dora = dataclasses.replace(
    tiny_metadata.METADATA, lora=lora_lib.LoraConfig(rank=8, dora=True)
  )
  assert run_metadata.from_json(run_metadata.to_json(dora), 'here') == dora
