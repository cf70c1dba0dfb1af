"""Commands of `fake_stage` and their gin files, for tests of command lines."""

import fake_stage
import gin
import pytest

from perlhf_jax.cli import commands
from perlhf_jax.cli import main

RUN_GIN = """\
# A run.
from __gin__ import dynamic_registration
import fake_stage

include 'defaults.gin'

MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = %gin.REQUIRED
CHECKPOINT_PATH = None

fake_stage.train:
  model_dir = %MODEL_DIR
  train_steps = %TRAIN_STEPS
  rank = %LORA_RANK
  checkpoint = %CHECKPOINT_PATH
  extra = %EXTRA

EXTRA = None
"""
DEFAULTS_GIN = 'LORA_RANK = 8\n'
MODEL_GIN = """\
from __gin__ import dynamic_registration
import fake_stage

WIDTH = 16
fake_stage.train.model = @fake_stage.Model()
fake_stage.Model.width = %WIDTH
"""

COMMANDS = {
  'train': commands.Command(
    help='trains',
    function='fake_stage.train',
    example='perlhf train --gin.TRAIN_STEPS=1',
    macros={'checkpoint': 'CHECKPOINT_PATH'},
    gin_file='run.gin',
  ),
  'score': commands.Command(
    help='scores',
    function='fake_stage.score',
    example='perlhf score --input=a --output=b',
  ),
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'run.gin').write_text(RUN_GIN)
  (tmp_path / 'defaults.gin').write_text(DEFAULTS_GIN)
  (tmp_path / 'model.gin').write_text(MODEL_GIN)
  fake_stage.calls.clear()
  yield
  gin.clear_config()


GIVEN = ('--gin.MODEL_DIR="runs/a"', '--gin.TRAIN_STEPS=3')


def call(*argv):
  assert main.run(argv, COMMANDS) == 0
  (only,) = fake_stage.calls
  return only


def error(capsys, *argv):
  """Runs a command that must fail before its stage, and gives its message."""
  assert main.run(argv, COMMANDS) == 2
  assert not fake_stage.calls
  printed = capsys.readouterr()
  assert not printed.out
  assert printed.err.startswith('perlhf: error: ')
  assert 'Traceback' not in printed.err
  return printed.err
