import re
import subprocess
import sys

import fake_stage
import gin
import pytest

from perlhf_jax import command_line
from perlhf_jax import main

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
  'train': command_line.Command(
    help='trains',
    module='fake_stage',
    function='train',
    example='perlhf train --gin.TRAIN_STEPS=1',
    flags=(
      command_line.Flag('checkpoint', 'where from', macro='CHECKPOINT_PATH'),
    ),
    gin_file='run.gin',
  ),
  'score': command_line.Command(
    help='scores',
    module='fake_stage',
    function='score',
    example='perlhf score --input=a --output=b',
    flags=(
      command_line.Flag(
        'input', 'what to read', required=True, argument='input_path'
      ),
      command_line.Flag(
        'output', 'what to write', required=True, argument='output_path'
      ),
      command_line.Flag('batch_size', 'lines a step', int, default=32),
      command_line.Flag('base', 'its base'),
      command_line.Flag('seed', 'of the dice', int, default=0, minimum=0),
      command_line.Flag('scale', 'how much', float),
      command_line.Flag('heat', 'how hot', float, default=1.0, minimum=0),
    ),
  ),
}


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'run.gin').write_text(RUN_GIN)
  (tmp_path / 'defaults.gin').write_text(DEFAULTS_GIN)
  (tmp_path / 'model.gin').write_text(MODEL_GIN)
  fake_stage.calls.clear()
  yield
  gin.clear_config()


GIVEN = ('--gin.MODEL_DIR="runs/a"', '--gin.TRAIN_STEPS=3')


def _call(*argv):
  assert main.run(argv, COMMANDS) == 0
  (call,) = fake_stage.calls
  return call


def _error(capsys, *argv):
  """Runs a command that must fail before its stage, and gives its message."""
  assert main.run(argv, COMMANDS) == 2
  assert not fake_stage.calls
  printed = capsys.readouterr()
  assert not printed.out
  assert printed.err.startswith('perlhf: error: ')
  assert 'Traceback' not in printed.err
  return printed.err


# What works.


def test_default_gin_file_and_macros():
  call = _call('train', *GIVEN)
  assert call['model_dir'] == 'runs/a'
  assert call['train_steps'] == 3
  assert call['rank'] == 8
  assert call['model'] is None


def test_several_gin_files_and_an_override():
  call = _call(
    'train',
    '--gin_file=run.gin',
    '--gin_file=model.gin',
    *GIVEN,
    '--gin.LORA_RANK=1',
    '--gin.WIDTH=32',
    '--gin.fake_stage.Model.depth=7',
  )
  assert call['rank'] == 1
  assert (call['model'].width, call['model'].depth) == (32, 7)


def test_the_last_binding_wins():
  call = _call('train', *GIVEN, '--gin.LORA_RANK=1', '--gin.LORA_RANK=2')
  assert call['rank'] == 2


def test_gin_bindings_is_the_same_as_gin_dot():
  call = _call('train', *GIVEN, '--gin_bindings=LORA_RANK = 2')
  assert call['rank'] == 2


def test_a_flag_can_stand_for_a_macro():
  assert _call('train', *GIVEN, '--checkpoint=my "dir"')['checkpoint'] == (
    'my "dir"'
  )


def test_values_may_hold_spaces_and_brackets():
  call = _call('train', *GIVEN, "--gin.CHECKPOINT_PATH=('a = b', [1, -2])")
  assert call['checkpoint'] == ('a = b', [1, -2])


def test_search_paths(tmp_path, capsys):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'size.gin').write_text('LORA_RANK = 5\n')
  args = ['train', '--gin_file=run.gin', '--gin_file=size.gin', *GIVEN]
  assert 'no gin file size.gin' in _error(capsys, *args)
  call = _call(*args, '--gin_search_paths=nowhere,elsewhere')
  assert call['rank'] == 5


def test_commands_can_follow_each_other():
  assert main.run(['train', *GIVEN, '--gin.LORA_RANK=1'], COMMANDS) == 0
  assert main.run(['train', *GIVEN], COMMANDS) == 0
  assert [call['rank'] for call in fake_stage.calls] == [1, 8]


def test_the_stage_can_write_down_its_configuration(tmp_path):
  args = ['--gin_file=run.gin', '--gin_file=model.gin', *GIVEN]
  first = _call('train', *args)
  (tmp_path / 'config.gin').write_text(first['config'])
  fake_stage.calls.clear()
  second = _call('train', '--gin_file=config.gin')
  assert second['config'] == first['config']
  assert (second['model_dir'], second['train_steps']) == ('runs/a', 3)
  assert second['model'].width == 16


def test_flags_of_a_command_without_gin():
  call = _call('score', '--input=a.jsonl', '--output', 'b.jsonl')
  assert call == {
    'input_path': 'a.jsonl',
    'output_path': 'b.jsonl',
    'batch_size': 32,
    'base': None,
    'seed': 0,
    'scale': None,
    'heat': 1.0,
  }


@pytest.mark.parametrize(
  ('flag', 'value'),
  [
    ('--seed=0', 0),
    ('--heat=0', 0.0),
    ('--heat=0.25', 0.25),
    ('--scale=-1e-3', -0.001),
    ('--scale=7', 7.0),
  ],
)
def test_numbers(flag, value):
  call = _call('score', '--input=a', '--output=b', flag)
  got = call[flag[2:].split('=')[0]]
  assert got == value and type(got) is type(value)


def test_help_lists_the_commands(capsys):
  assert main.run(['--help'], COMMANDS) == 0
  assert main.run([], COMMANDS) == 0
  assert 'train  trains' in capsys.readouterr().out


def test_help_of_a_command(capsys):
  assert main.run(['score', '--help'], COMMANDS) == 0
  page = capsys.readouterr().out
  assert 'what to read (required)' in page
  assert 'lines a step (default 32)' in page
  assert 'of the dice (default 0)' in page
  assert 'how hot (default 1.0)' in page
  assert 'how much\n' in page
  assert 'perlhf score --input=a --output=b' in page
  assert 'gin' not in page


def test_help_of_a_command_tells_its_macros(capsys):
  assert main.run(['train', '--help'], COMMANDS) == 0
  to_give, may_give = capsys.readouterr().out.split('May be given:')
  assert '  MODEL_DIR\n  TRAIN_STEPS\n' in to_give
  assert '  LORA_RANK = 8\n' in may_give
  assert 'MODEL_DIR' not in may_give


def test_help_describes_the_gin_files_it_is_given(capsys):
  assert main.run(['train', '--gin_file=model.gin', '--help'], COMMANDS) == 0
  page = capsys.readouterr().out
  assert 'WIDTH = 16' in page
  assert 'TRAIN_STEPS' not in page.split('Example')[0]


# What does not.


def test_unknown_command(capsys):
  message = _error(capsys, 'trian')
  assert 'no command trian; did you mean train?' in message


def test_flag_before_the_command(capsys):
  assert 'command comes first' in _error(capsys, '--gin_file=run.gin', 'train')


def test_unknown_flag(capsys):
  message = _error(capsys, 'score', '--inptu=a', '--output=b')
  assert 'no flag --inptu; did you mean --input?' in message


def test_flag_of_another_command(capsys):
  assert 'no flag --input' in _error(capsys, 'train', '--input=a')


def test_missing_flag(capsys):
  message = _error(capsys, 'score', '--input=a')
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
  ],
)
def test_bad_number(capsys, flag):
  message = _error(capsys, 'score', '--input=a', '--output=b', flag)
  name, value = flag.removeprefix('--').split('=')
  assert name in message
  assert value in message


def test_stray_argument(capsys):
  message = _error(capsys, 'train', *GIVEN, 'fast')
  assert "unexpected argument 'fast'" in message


def test_gin_given_to_a_command_without_gin(capsys):
  message = _error(capsys, 'score', '--input=a', '--output=b', '--gin.X=1')
  assert 'not configured by gin' in message


def test_missing_gin_file_says_where_it_looked(capsys, tmp_path):
  message = _error(capsys, 'train', '--gin_file=rnu.gin')
  assert 'no gin file rnu.gin' in message
  assert str(tmp_path) in message


def test_missing_include(capsys, tmp_path):
  (tmp_path / 'defaults.gin').unlink()
  assert 'no gin file defaults.gin' in _error(capsys, 'train', *GIVEN)


def test_include_cycle(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text("include 'run.gin'")
  message = _error(capsys, 'train', *GIVEN)
  assert 'run.gin includes defaults.gin includes run.gin' in message


def test_required_macros_are_named_together(capsys):
  message = _error(capsys, 'train')
  assert '--gin.MODEL_DIR=... (required by run.gin, line 7)' in message
  assert '--gin.TRAIN_STEPS=... (required by run.gin, line 8)' in message


def test_required_macro_with_a_flag(capsys, tmp_path):
  (tmp_path / 'run.gin').write_text(
    RUN_GIN.replace('PATH = None', 'PATH = %gin.REQUIRED')
  )
  assert 'give --checkpoint=... (' in _error(capsys, 'train', *GIVEN)


def test_undefined_macro(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text('')
  message = _error(capsys, 'train', *GIVEN)
  # Our own gin files that define such a macro would do, too.
  assert re.search(
    r'give (--gin_file=.*, or )?--gin\.LORA_RANK=\.\.\. '
    r'\(run\.gin, line 14 reads %LORA_RANK\)',
    message,
  )


def test_undefined_macro_suggests_our_files_that_define_it(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text('LORA_RANK = %MODEL')
  message = _error(capsys, 'train', *GIVEN)
  assert '--gin_file=gin/models/' in message


def test_misspelt_macro_on_the_command_line(capsys):
  message = _error(capsys, 'train', *GIVEN, '--gin.LORA_RNK=4')
  assert 'LORA_RNK, which none of the gin files reads' in message
  assert 'did you mean LORA_RANK?' in message


def test_macro_that_only_another_file_reads(capsys):
  message = _error(capsys, 'train', *GIVEN, '--gin.WIDTH=4')
  assert 'WIDTH, which none of the gin files reads' in message


def test_text_without_quotes(capsys):
  message = _error(capsys, 'train', '--gin.MODEL_DIR=runs/rm')
  assert '--gin.MODEL_DIR="\'runs/rm\'"' in message


@pytest.mark.parametrize(
  'value', ['[1, 2', '"runs', 'two words', '{[]: 1}', '@', '1 2']
)
def test_value_that_is_not_gin(capsys, value):
  message = _error(capsys, 'train', f'--gin.MODEL_DIR={value}')
  assert f'--gin.MODEL_DIR={value}: {value} is not a gin value' in message


@pytest.mark.parametrize('arg', ['--gin.TRAIN_STEPS', '--gin.TRAIN_STEPS='])
def test_binding_without_a_value(capsys, arg):
  message = _error(capsys, 'train', arg)
  assert 'gives no value: write --gin.TRAIN_STEPS=VALUE' in message


@pytest.mark.parametrize(
  ('line', 'complaint'),
  [
    ('A = runs/a', 'cannot read `A = runs/a`'),
    ('A = (1,', 'bracket or a quote left open'),
    ('A 3', 'cannot read `A 3`'),
    ('A = {[]: 1}', 'unhashable'),
  ],
)
def test_syntax_error_in_a_file(capsys, tmp_path, line, complaint):
  (tmp_path / 'defaults.gin').write_text(f'# Defaults.\n{line}\n')
  message = _error(capsys, 'train', *GIVEN)
  assert 'defaults.gin' in message
  assert complaint in message


def test_syntax_error_names_its_line(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text('# Defaults.\n\nA = b\n')
  assert 'defaults.gin, line 3' in _error(capsys, 'train', *GIVEN)


def test_misspelt_parameter_in_a_file(capsys, tmp_path):
  (tmp_path / 'run.gin').write_text(RUN_GIN.replace('rank =', 'rnak ='))
  message = _error(capsys, 'train', *GIVEN)
  assert 'run.gin, line 14' in message
  assert "parameter named 'rnak'" in message
  assert 'Did you mean rank?' in message


def test_misspelt_parameter_on_the_command_line(capsys):
  arg = '--gin.fake_stage.train.zzz=4'
  message = _error(capsys, 'train', *GIVEN, arg)
  assert arg in message
  assert 'It has model_dir, train_steps' in message


def test_misspelt_configurable(capsys, tmp_path):
  (tmp_path / 'run.gin').write_text(
    RUN_GIN.replace('fake_stage.train:', 'fake_stage.trian:')
  )
  message = _error(capsys, 'train', *GIVEN)
  assert 'run.gin, line 11' in message
  assert 'trian' in message


def test_misspelt_configurable_on_the_command_line(capsys):
  arg = '--gin.fake_stage.trian.rank=4'
  message = _error(capsys, 'train', *GIVEN, arg)
  assert arg in message


def test_misspelt_import(capsys, tmp_path):
  (tmp_path / 'run.gin').write_text(
    RUN_GIN.replace('import fake_stage', 'import fake_satge')
  )
  message = _error(capsys, 'train', *GIVEN)
  assert 'run.gin, line 3: no module fake_satge' in message


def test_a_fault_inside_an_import_keeps_its_traceback(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'broken_module.py').write_text('import module_that_is_missing\n')
  (tmp_path / 'run.gin').write_text(
    RUN_GIN.replace(
      'import fake_stage', 'import fake_stage\nimport broken_module'
    )
  )
  with pytest.raises(ModuleNotFoundError, match='module_that_is_missing'):
    main.run(['train', *GIVEN], COMMANDS)


def test_run_file_left_out(capsys):
  message = _error(capsys, 'train', '--gin_file=model.gin')
  assert 'none of model.gin binds model_dir, train_steps' in message


def test_argument_bound_nowhere_and_function_unknown_to_gin(capsys, tmp_path):
  (tmp_path / 'empty.gin').write_text('')
  commands = {
    'train': command_line.Command(
      help='',
      module='fake_stage',
      function='never_configured',
      example='',
      gin_file='empty.gin',
    )
  }
  assert main.run(['train'], commands) == 2
  assert 'binds model_dir of fake_stage' in capsys.readouterr().err


def test_user_error_of_a_stage(capsys):
  args = ['train', '--gin.MODEL_DIR="unwritable"', '--gin.TRAIN_STEPS=1']
  assert main.run(args, COMMANDS) == 2
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
  assert main.run(args, COMMANDS) == code
  assert capsys.readouterr().err == f'perlhf: {message}\n'


def test_a_fault_of_ours_keeps_its_traceback():
  args = ['train', '--gin.MODEL_DIR="fault"', '--gin.TRAIN_STEPS=1']
  with pytest.raises(ValueError, match='a fault of ours'):
    main.run(args, COMMANDS)


def test_as_a_process():
  result = subprocess.run(
    [sys.executable, '-m', 'perlhf_jax.main', 'scor'],
    cwd=main.__file__.rsplit('/', 2)[0],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2
  assert result.stdout == ''
  assert result.stderr.startswith('perlhf: error: no command scor; did you')
  assert result.stderr.count('\n') == 1
