"""A PaLI that starts from a T5 and the ViT of a SigLIP directory."""

import json
import pathlib

import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loading
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import siglip
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/hf_pali'
SIGLIP = GOLDEN / 'siglip'
# The checkpoints say which model they are.
FLAGS = ('--gin.MODEL=None', '--gin.VOCABULARY=None', '--gin.EVAL_EXAMPLES=8')
VIT = f"--gin.INITIAL_VIT_PATH='{SIGLIP}'"


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """`text`, a T5; on it and SigLIP `full` and `lora`; on `lora` the rest."""
  root = tmp_path_factory.mktemp('siglip')
  runs.train('train_sft', 'none', root / 'text', 'demo_sft', steps=1)

  def train(command, name, tuning, task, *more, start):
    runs.train(
      command,
      tuning,
      root / name,
      task,
      *FLAGS,
      *more,
      start=root / start,
      steps=2,
      tiny=runs.TINY_PALI,
    )

  train('train_sft', 'full', 'none', 'demo_vqa_sft', VIT, start='text')
  train('train_sft', 'lora', 'attention', 'demo_vqa_sft', VIT, start='text')
  train('train_reward', 'rm', 'attention', 'demo_vqa_rm', start='lora')
  train(
    'train_policy',
    'policy',
    'attention',
    'demo_vqa_prompts',
    '--gin_file=gin/rl/reinforce.gin',
    f"--gin.REWARD_CHECKPOINT='{root / 'rm'}'",
    '--gin.DROPOUT_RATE=0.0',
    '--gin.PaliConfig.dropout_rate=0.0',
    start='lora',
  )
  return root


@pytest.fixture(scope='module')
def vit():
  return tree_paths.flatten(
    siglip.load_params(SIGLIP, siglip.load_config(SIGLIP))
  )


@pytest.mark.parametrize('name', ['full', 'lora', 'policy'])
def test_the_vit_is_siglips(root, vit, name):
  loaded = loading.load(str(root / name), partitioning.make_mesh())
  params = tree_paths.flatten(loaded.params['vit'])
  assert params.keys() == vit.keys()
  for path, leaf in vit.items():
    np.testing.assert_array_equal(params[path], leaf)


@pytest.mark.parametrize('name', ['full', 'lora'])
def test_checkpoints_name_both_parts(root, name):
  step = step_files.find_step(str(root / name))
  base = step_files.read_metadata(step)['base']
  assert base['path'].startswith(str(root / 'text'))
  assert base['vit_path'] == str(SIGLIP)
  params = tree_paths.flatten(step_files.read_trainable(step))
  assert not any('/vit/' in path for path in params)
  assert any('image_projection' in path for path in params)


def test_what_is_built_on_it_works(root, tmp_path):
  for name in ('rm', 'policy'):
    command = ['evaluate', f'--checkpoint={root / name}']
    assert main.run([*command, '--gin.EVAL_EXAMPLES=8']) == 0
    assert json.loads((root / name / 'eval.json').read_text())['examples'] == 8


def fails(capsys, arguments):
  assert main.run(arguments) == 2
  return capsys.readouterr().err


@pytest.mark.parametrize(
  ('more', 'wanted'),
  [
    (("--gin.INITIAL_VIT_PATH='{root}/none'",), 'there is no such folder'),
    (
      ("--gin.INITIAL_CHECKPOINT_PATH='{root}/full'", VIT),
      'already has a ViT',
    ),
    (('--gin.INITIAL_CHECKPOINT_PATH=None', VIT), 'set both'),
    ((VIT, '--gin_file=gin/models/pali_tiny.gin'), 'vit.patch_size 8'),
  ],
)
def test_mistakes(root, tmp_path, capsys, more, wanted):
  arguments = runs.arguments(
    'train_sft',
    'none',
    tmp_path / 'out',
    'demo_vqa_sft',
    *(FLAGS if 'pali_tiny' not in str(more) else ()),
    *(each.format(root=root) for each in more),
    start=None if 'INITIAL_CHECKPOINT' in str(more) else root / 'text',
    tiny=runs.TINY_PALI,
  )
  assert wanted in fails(capsys, arguments)
