import subprocess
import sys

import fake_commands
import fake_stage
import pytest

from perlhf_jax.cli import main

pytestmark = pytest.mark.usefixtures('workplace')
workplace = fake_commands.workplace


# What works.


def test_default_gin_file_and_macros():
  call = fake_commands.call('train', *fake_commands.GIVEN)
  assert call['model_dir'] == 'runs/a'
  assert call['train_steps'] == 3
  assert call['rank'] == 8
  assert call['model'] is None


def test_several_gin_files_and_an_override():
  call = fake_commands.call(
    'train',
    '--gin_file=run.gin',
    '--gin_file=model.gin',
    *fake_commands.GIVEN,
    '--gin.LORA_RANK=1',
    '--gin.WIDTH=32',
    '--gin.fake_stage.Model.depth=7',
  )
  assert call['rank'] == 1
  assert (call['model'].width, call['model'].depth) == (32, 7)


def test_the_last_binding_wins():
  call = fake_commands.call(
    'train', *fake_commands.GIVEN, '--gin.LORA_RANK=1', '--gin.LORA_RANK=2'
  )
  assert call['rank'] == 2


def test_gin_bindings_is_the_same_as_gin_dot():
  call = fake_commands.call(
    'train', *fake_commands.GIVEN, '--gin_bindings=LORA_RANK = 2'
  )
  assert call['rank'] == 2


def test_a_flag_can_stand_for_a_macro():
  assert fake_commands.call(
    'train', *fake_commands.GIVEN, '--checkpoint=my "dir"'
  )['checkpoint'] == ('my "dir"')


def test_values_may_hold_spaces_and_brackets():
  call = fake_commands.call(
    'train', *fake_commands.GIVEN, "--gin.EXTRA=('a = b', [1, -2])"
  )
  assert call['extra'] == ('a = b', [1, -2])


def test_search_paths(tmp_path, capsys):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'size.gin').write_text('LORA_RANK = 5\n')
  args = [
    'train',
    '--gin_file=run.gin',
    '--gin_file=size.gin',
    *fake_commands.GIVEN,
  ]
  assert 'no gin file size.gin' in fake_commands.error(capsys, *args)
  call = fake_commands.call(*args, '--gin_search_paths=nowhere,elsewhere')
  assert call['rank'] == 5


def test_commands_can_follow_each_other():
  assert (
    main.run(
      ['train', *fake_commands.GIVEN, '--gin.LORA_RANK=1'],
      fake_commands.COMMANDS,
    )
    == 0
  )
  assert main.run(['train', *fake_commands.GIVEN], fake_commands.COMMANDS) == 0
  assert [call['rank'] for call in fake_stage.calls] == [1, 8]


def test_the_stage_can_write_down_its_configuration(tmp_path):
  args = ['--gin_file=run.gin', '--gin_file=model.gin', *fake_commands.GIVEN]
  first = fake_commands.call('train', *args)
  (tmp_path / 'config.gin').write_text(first['config'])
  fake_stage.calls.clear()
  second = fake_commands.call('train', '--gin_file=config.gin')
  assert second['config'] == first['config']
  assert (second['model_dir'], second['train_steps']) == ('runs/a', 3)
  assert second['model'].width == 16


def test_flags_of_a_command_without_gin():
  call = fake_commands.call('score', '--input=a.jsonl', '--output', 'b.jsonl')
  assert call == {
    'input_path': 'a.jsonl',
    'output_path': 'b.jsonl',
    'batch_size': 32,
    'base': None,
    'seed': 0,
    'scale': None,
    'heat': 1.0,
    'mesh_shape': (-1, 1, 1),
  }


@pytest.mark.parametrize(
  ('flag', 'value'),
  [
    ('--seed=0', 0),
    ('--heat=0', 0.0),
    ('--heat=0.25', 0.25),
    ('--scale=-1e-3', -0.001),
    ('--scale=7', 7.0),
    ('--mesh_shape=1,4,2', (1, 4, 2)),
    ('--mesh_shape=(1, -1, 2)', (1, -1, 2)),
  ],
)
def test_numbers(flag, value):
  call = fake_commands.call('score', '--input=a', '--output=b', flag)
  got = call[flag[2:].split('=')[0]]
  assert got == value and type(got) is type(value)


def test_help_lists_the_commands(capsys):
  assert main.run(['--help'], fake_commands.COMMANDS) == 0
  assert main.run([], fake_commands.COMMANDS) == 0
  assert 'train  trains' in capsys.readouterr().out


def test_help_of_a_command(capsys):
  assert main.run(['score', '--help'], fake_commands.COMMANDS) == 0
  page = capsys.readouterr().out
  assert 'what to read (required)' in page
  assert 'lines per step (default 32)' in page
  assert 'of the dice (default 0)' in page
  assert 'how hot (default 1.0)' in page
  assert 'how much\n' in page
  assert 'perlhf score --input=a --output=b' in page
  assert 'gin' not in page


def test_help_of_a_command_tells_its_macros(capsys):
  assert main.run(['train', '--help'], fake_commands.COMMANDS) == 0
  to_give, may_give = capsys.readouterr().out.split('Optional:')
  assert '  MODEL_DIR\n  TRAIN_STEPS\n' in to_give
  assert '  LORA_RANK = 8\n' in may_give
  assert 'MODEL_DIR' not in may_give


def test_help_says_what_macros_do(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text(
    'LORA_RANK = 8  # Of the adapters.\n\n'
    "# What is read,\n# and how much.\nLENGTHS = {'inputs': '# 1'}\n"
    'ALONE = 1\n'
  )
  assert main.run(['train', '--help'], fake_commands.COMMANDS) == 0
  lines = capsys.readouterr().out.splitlines()
  assert f'  {"LORA_RANK = 8":34}Of the adapters.' in lines
  lengths = "LENGTHS = {'inputs': '# 1'}"
  assert f'  {lengths:34}What is read, and how much.' in lines
  assert '  ALONE = 1' in lines


def test_help_describes_the_gin_files_it_is_given(capsys):
  assert (
    main.run(
      ['train', '--gin_file=model.gin', '--help'], fake_commands.COMMANDS
    )
    == 0
  )
  page = capsys.readouterr().out
  assert 'with run.gin, model.gin:' in page
  assert '  MODEL_DIR\n' in page
  assert 'WIDTH = 16' in page


# What does not.


def test_unknown_command(capsys):
  message = fake_commands.error(capsys, 'trian')
  assert 'no command trian; did you mean train?' in message


def test_flag_before_the_command(capsys):
  assert 'command comes first' in fake_commands.error(
    capsys, '--gin_file=run.gin', 'train'
  )


def test_unknown_flag(capsys):
  message = fake_commands.error(capsys, 'score', '--inptu=a', '--output=b')
  assert 'no flag --inptu; did you mean --input?' in message


def test_flag_of_another_command(capsys):
  assert 'no flag --input' in fake_commands.error(capsys, 'train', '--input=a')


def test_missing_flag(capsys):
  message = fake_commands.error(capsys, 'score', '--input=a')
  assert 'give --output, what to write' in message


@pytest.mark.parametrize(
  'flag',
  [
    '--batch_size=many',
    '--batch_size=0',
    '--batch_size=-3',
    '--batch_size=2.5',
    '--seed=-1',
    '--heat=-0.1',
    '--heat=warm',
    '--heat=nan',
    '--heat=inf',
    '--scale=-inf',
    '--mesh_shape=wide',
    '--mesh_shape=1,2.5,1',
  ],
)
def test_bad_number(capsys, flag):
  message = fake_commands.error(
    capsys, 'score', '--input=a', '--output=b', flag
  )
  name, value = flag.removeprefix('--').split('=')
  assert name in message
  assert value in message


def test_stray_argument(capsys):
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN, 'fast')
  assert "unexpected argument 'fast'" in message


def test_gin_given_to_a_command_without_gin(capsys):
  message = fake_commands.error(
    capsys, 'score', '--input=a', '--output=b', '--gin.X=1'
  )
  assert 'not configured by gin' in message


def test_user_error_of_a_stage(capsys):
  args = ['train', '--gin.MODEL_DIR="unwritable"', '--gin.TRAIN_STEPS=1']
  assert main.run(args, fake_commands.COMMANDS) == 2
  # The whole message: gin's trail of call sites is not the user's business.
  assert capsys.readouterr().err == (
    'perlhf: error: cannot write to unwritable\n'
  )


@pytest.mark.parametrize(
  ('name', 'code', 'message'),
  [('preempted', 75, 'stopped at step 3'), ('interrupt', 130, 'interrupted')],
)
def test_a_run_that_was_stopped(capsys, name, code, message):
  args = ['train', f'--gin.MODEL_DIR="{name}"', '--gin.TRAIN_STEPS=1']
  assert main.run(args, fake_commands.COMMANDS) == code
  assert capsys.readouterr().err == f'perlhf: {message}\n'


def test_a_fault_of_ours_keeps_its_traceback():
  args = ['train', '--gin.MODEL_DIR="fault"', '--gin.TRAIN_STEPS=1']
  with pytest.raises(ValueError, match='a fault of ours'):
    main.run(args, fake_commands.COMMANDS)


def test_as_a_process():
  result = subprocess.run(
    [sys.executable, '-m', 'perlhf_jax', 'scor'],
    cwd=main.__file__.rsplit('/', 2)[0],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2
  assert result.stdout == ''
  assert result.stderr.startswith('perlhf: error: no command scor; did you')
  assert result.stderr.count('\n') == 1


LATE_CODE = """
import atexit, os, signal, sys
from perlhf_jax.cli import main

atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.argv = ['perlhf', {0!r}]
main.cli()
"""


@pytest.mark.parametrize(('argument', 'code'), [('--help', 0), ('scor', 2)])
def test_sigterm_after_the_end_changes_no_exit_code(argument, code):
  result = subprocess.run(
    [sys.executable, '-c', LATE_CODE.format(argument)],
    capture_output=True,
    check=False,
  )
  assert result.returncode == code
