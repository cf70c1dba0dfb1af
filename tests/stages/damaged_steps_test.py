"""Every command reads the newest step that is intact, or says that none is."""

import json
import random
import shutil

import numpy as np
import pytest
import runs

import perlhf_jax
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.training import step_files

ROWS = [
  {'prompt': 'todo: gym Rent tea Call mail', 'response': 'rent, call'},
  {'prompt': 'todo: Lamp', 'response': 'lamp'},
]
TASK = '--gin.MIXTURE_OR_TASK_NAME="demo_rm"'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """`sft` and `reward` with steps 2, 4 and 6; the newest are damaged."""
  root = tmp_path_factory.mktemp('runs')
  often = '--gin.CHECKPOINT_PERIOD=2', '--gin.EVAL_PERIOD=2'
  runs.train('train_sft', 'none', root / 'sft', 'demo_sft', *often)
  runs.train(
    *('train_reward', 'attention', root / 'reward', 'demo_rm', *often),
    start=root / 'sft' / 'checkpoints' / '2',
  )
  shutil.copytree(root, root / 'whole')
  for name in 'sft', 'reward':
    _flip_a_weight(root / name / 'checkpoints' / '6')
  return root


def _data_file(step):
  """The file that holds the arrays."""
  files = [path for path in (step / 'state').rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def _flip_a_weight(step):
  file = _data_file(step)
  data = bytearray(file.read_bytes())
  place = random.Random(0).randrange(len(data) // 4, len(data) // 2)
  data[place] ^= 0x40
  file.write_bytes(data)


def _copy(root, name, tmp_path):
  """A damaged MODEL_DIR of one's own, beside what it is based on."""
  shutil.copytree(root / name, tmp_path / name)
  return tmp_path / name


def _score(checkpoint, tmp_path):
  return runs.score(checkpoint, ROWS, tmp_path)


def _generate(checkpoint, tmp_path):
  prompts = [{'prompt': row['prompt']} for row in ROWS]
  more = '--temperature=0', '--max_length=8'
  return runs.generate(checkpoint, prompts, tmp_path, *more)


def _evaluate(checkpoint, tmp_path):
  assert main.run(['evaluate', f'--checkpoint={checkpoint}', TASK]) == 0
  model_dir = checkpoint
  if checkpoint.parent.name == 'checkpoints':
    model_dir = checkpoint.parent.parent
  figures = json.loads((model_dir / 'eval.json').read_text())
  return {
    name: figures[name] for name in ('examples', 'pairwise_accuracy', 'loss')
  }


def _convert(checkpoint, tmp_path):
  target = tmp_path / f'converted_{checkpoint.name}'
  assert runs.convert(checkpoint, target, 'hf') == 0
  return (target / 'model.safetensors').read_bytes()


def _load(checkpoint, tmp_path):
  model = perlhf_jax.load(str(checkpoint))
  return model.score(
    [row['prompt'] for row in ROWS], [row['response'] for row in ROWS]
  )


COMMANDS = {
  'score': ('reward', _score),
  'generate': ('sft', _generate),
  'evaluate': ('reward', _evaluate),
  'convert': ('sft', _convert),
  'load': ('reward', _load),
}


@pytest.mark.parametrize('command', COMMANDS)
def test_each_command_uses_the_newest_intact_step(
  root, tmp_path, command, caplog
):
  name, run = COMMANDS[command]
  before = run(root / 'whole' / name / 'checkpoints' / '4', tmp_path)
  damaged = _copy(root, name, tmp_path)
  assert run(damaged, tmp_path) == before
  assert 'Step 4 is used' in caplog.text
  assert (damaged / 'checkpoints' / '6.damaged').is_dir()


def test_training_goes_on_from_the_newest_intact_step(root, tmp_path, caplog):
  damaged = _copy(root, 'sft', tmp_path)
  often = '--gin.CHECKPOINT_PERIOD=2', '--gin.EVAL_PERIOD=2'
  runs.train('train_sft', 'none', damaged, 'demo_sft', *often)
  assert 'Step 4 is used' in caplog.text
  trees = [
    tree_paths.flatten(step_files.read_trainable(step_files.find_step(str(d))))
    for d in (damaged, root / 'whole' / 'sft')
  ]
  assert step_files.find_step(str(damaged)).name == '6'
  for path, leaf in trees[0].items():
    np.testing.assert_array_equal(leaf, trees[1][path])
  assert (damaged / 'checkpoints' / '6.damaged').is_dir()


def test_a_base_that_is_damaged_is_no_other_one(root, tmp_path, capsys):
  """An adapter stands on one step of its base, and on no other."""
  shutil.copytree(root / 'whole', tmp_path / 'runs')
  base = tmp_path / 'runs' / 'sft' / 'checkpoints' / '2'
  _flip_a_weight(base)
  rows = runs.write_rows(tmp_path / 'rows.jsonl', ROWS)
  checkpoint = tmp_path / 'runs' / 'reward'
  flags = f'--base_checkpoint={base}', f'--output={tmp_path / "out.jsonl"}'
  line = ['score', f'--checkpoint={checkpoint}', f'--input={rows}', *flags]
  assert main.run(line) == 2
  message = capsys.readouterr().err
  assert f'The step {base} is damaged' in message
  assert _data_file(base).name in message


_ALL = {
  'score': ('score', '--input={rows}', '--output={out}'),
  'generate': ('generate', '--input={rows}', '--output={out}'),
  'evaluate': ('evaluate', TASK),
  'convert': ('convert', '--to=hf', '--target={out}'),
  'inspect': ('inspect',),
}


def _command_line(command, checkpoint, tmp_path):
  rows = runs.write_rows(tmp_path / 'rows.jsonl', ROWS)
  name, *flags = _ALL[command]
  flag = 'source' if command == 'convert' else 'checkpoint'
  flags = [f.format(rows=rows, out=tmp_path / 'out') for f in flags]
  return [name, f'--{flag}={checkpoint}', *flags]


@pytest.mark.parametrize('command', [*_ALL, 'train_sft', 'train_reward'])
@pytest.mark.parametrize('damage', ['emptied', 'data removed', 'digests gone'])
def test_where_no_step_is_intact(root, tmp_path, command, damage, capsys):
  damaged = _copy(root, 'sft', tmp_path)
  for step in (damaged / 'checkpoints').iterdir():
    if damage == 'emptied':
      shutil.rmtree(step)
      step.mkdir()
    elif damage == 'data removed':
      _data_file(step).unlink()
    else:
      (step / 'digests.json').unlink()
  if command == 'train_sft':
    line = runs.arguments('train_sft', 'none', damaged, 'demo_sft')
  elif command == 'train_reward':
    line = runs.arguments(
      *('train_reward', 'none', tmp_path / 'rm', 'demo_rm'), start=damaged
    )
  else:
    line = _command_line(command, damaged, tmp_path)
  assert main.run(line) == 2
  message = capsys.readouterr().err
  assert f'No intact step is left in {damaged / "checkpoints"}' in message
  assert all(f'{step} (' in message for step in (2, 4, 6))
  assert 'Traceback' not in message


def test_verify_names_what_is_damaged(root, tmp_path, capsys):
  checkpoint = f'--checkpoint={root / "whole" / "sft"}'
  assert main.run(['inspect', checkpoint, '--verify']) == 0
  output = capsys.readouterr().out
  for part in 'step 2', 'step 4', 'step 6', 'summary.json', 'metrics.jsonl':
    assert any(
      line.startswith(f'{part}:') and 'intact' in line
      for line in output.splitlines()
    ), part
  damaged = _copy(root, 'sft', tmp_path)
  with (damaged / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 6, "spl\n')
  assert main.run(['inspect', f'--checkpoint={damaged}', '--verify']) == 2
  output = capsys.readouterr()
  name = _data_file(damaged / 'checkpoints' / '6').name
  lines = output.out.splitlines()
  assert any(
    line.startswith('step 6:') and 'damaged' in line and name in line
    for line in lines
  )
  assert f'Damaged in {damaged}: step 6, metrics.jsonl.' in output.err
  # Verifying changes nothing.
  assert (damaged / 'checkpoints' / '6').is_dir()


def test_verify_of_something_else(tmp_path, capsys):
  (tmp_path / 'config.json').write_text('{}')
  assert main.run(['inspect', f'--checkpoint={tmp_path}', '--verify']) == 2
  assert 'neither a MODEL_DIR nor a step' in capsys.readouterr().err


def test_looking_moves_nothing(root, tmp_path, capsys, caplog):
  damaged = _copy(root, 'sft', tmp_path)
  _data_file(damaged / 'checkpoints' / '6').unlink()
  assert main.run(['inspect', f'--checkpoint={damaged}']) == 0
  path = damaged / 'checkpoints' / '4'
  assert f'path:        {path}' in capsys.readouterr().out
  assert 'Step 4 is used' in caplog.text
  assert (damaged / 'checkpoints' / '6').is_dir()
