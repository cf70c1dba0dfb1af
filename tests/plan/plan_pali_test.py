"""`perlhf plan` of a model that reads images, with this CPU for a TPU."""

import json

import jax
import numpy as np
import pytest

from perlhf_jax.cli import main
from perlhf_jax.training import topologies

SIDE, COUNT, BATCH = 16, 2, 4


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """The JSON by tuning and program."""
  output = tmp_path_factory.mktemp('plan') / 'plan.json'
  command = [
    'plan',
    '--gin_file=gin/runs/plan.gin',
    '--gin_file=gin/models/pali_tiny.gin',
    '--gin_file=gin/rl/reinforce.gin',
    '--gin_file=gin/optimizers/adamw.gin',
    "--gin.PaliConfig.dtype='bfloat16'",
    '--gin.PaliConfig.num_encoder_layers=1',
    '--gin.PaliConfig.num_decoder_layers=1',
    '--gin.ViTConfig.depth=1',
    f'--gin.IMAGE_SIZE={SIDE}',
    f'--gin.BATCH_SIZE={BATCH}',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8, 'images': 2}",
    '--topology=v5e-1',
    f'--output={output}',
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(topologies, 'devices', lambda topology: jax.devices()[:1])
    assert main.run(command) == 0
  rows = json.loads(output.read_text())
  return {(row['tuning'], row['program']): row for row in rows}


@pytest.mark.parametrize('tuning', ['lora', 'full'])
@pytest.mark.parametrize(
  'program', ['reward_step', 'rl_rollout', 'rl_scoring', 'rl_update']
)
def test_arguments_are_what_shapes_say(rows, tuning, program):
  row = rows[tuning, program]
  np.testing.assert_allclose(
    row['argument_bytes'], row['expected_argument_bytes'], rtol=0.002
  )
  assert row['fits']


def test_images_are_held_as_bytes(rows):
  images = BATCH * COUNT * SIDE * SIDE * 3
  for tuning in ('lora', 'full'):
    # The update reads no more than its weights, tokens and these.
    assert rows[tuning, 'rl_update']['argument_bytes'] > images
