"""The paper's hyper-parameters: each file's own command can be run."""

import pathlib
import shlex

import pytest

from perlhf_jax.cli import command_line
from perlhf_jax.cli import commands

PAPER = pathlib.Path(__file__).parents[1] / 'gin' / 'runs' / 'paper'
FILES = sorted(PAPER.glob('*.gin'))


def command_of(path):
  """The command in the head of a file, as arguments."""
  head = path.read_text().split('\n\n')[0].splitlines()
  lines = [line.removeprefix('#').strip() for line in head]
  start = next(i for i, line in enumerate(lines) if line.startswith('perlhf '))
  end = next(i for i in range(start, len(lines)) if not lines[i])
  text = ' '.join(line.removesuffix('\\') for line in lines[start:end])
  return shlex.split(text)[1:]


def macros(arguments):
  """What a command binds, by name; the last one wins."""
  name, *rest = arguments
  scan = command_line.parse(name, commands.COMMANDS[name], rest).scan
  return {macro: value for macro, (value, _) in scan.macros.items()}


def test_every_data_set_is_here():
  names = {path.stem for path in FILES}
  for dataset in ('harmless', 'shp', 'tldr', 'android_control', 'vqav2'):
    assert {
      f'{dataset}_reward_lora',
      f'{dataset}_reward_full',
      f'{dataset}_policy',
    } < names
  assert {'bolt_policy', 'tldr_sft', 'vqav2_sft'} < names


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_the_command_of_the_head_is_complete(path):
  arguments = command_of(path)
  assert any(argument.endswith(path.name) for argument in arguments)
  values = macros(arguments)
  own = {
    line.partition(' = ')[0]
    for line in path.read_text().splitlines()
    if ' = ' in line and not line.startswith('#')
  }
  # What a file sets, the run reads.
  assert own <= values.keys()


@pytest.mark.parametrize(
  'path', sorted(PAPER.glob('*_policy.gin')), ids=lambda path: path.stem
)
def test_policies_in_full(path):
  arguments = [a.replace('attention.gin', 'none.gin') for a in command_of(path)]
  assert 'gin/lora/none.gin' in ' '.join(arguments)
  macros(arguments)


@pytest.mark.parametrize(
  ('name', 'key', 'value'),
  [
    ('harmless_reward_lora', 'LEARNING_RATE', 2e-4),
    ('harmless_reward_full', 'LEARNING_RATE', 1e-5),
    ('harmless_reward_lora', 'TRAIN_STEPS', 5000),
    ('tldr_reward_lora', 'LEARNING_RATE', 1e-4),
    ('tldr_reward_lora', 'BATCH_SIZE', 128),
    ('tldr_policy', 'TEMPERATURE', 0.7),
    ('tldr_policy', 'KL_BETA', 0.05),
    ('bolt_policy', 'LEARNING_RATE', 1e-4),
    ('vqav2_policy', 'BATCH_SIZE', 32),
    ('vqav2_policy', 'LEARNING_RATE', 1e-8),
    ('vqav2_sft', 'LEARNING_RATE', 1e-7),
    ('shp_reward_lora', 'DROPOUT_RATE', 0.05),
    ('android_control_reward_lora', 'LEARNING_RATE', 5e-5),
  ],
)
def test_figures_of_the_paper(name, key, value):
  assert macros(command_of(PAPER / f'{name}.gin'))[key] == value
