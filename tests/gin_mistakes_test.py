"""Mistakes in gin files and bindings end in one message, at once."""

import re

import fake_commands
import fake_stage
import pytest

pytestmark = pytest.mark.usefixtures('workplace')
workplace = fake_commands.workplace


def test_missing_gin_file_says_where_it_looked(capsys, tmp_path):
  message = fake_commands.error(capsys, 'train', '--gin_file=rnu.gin')
  assert 'no gin file rnu.gin' in message
  assert str(tmp_path) in message


def test_missing_include(capsys, tmp_path):
  (tmp_path / 'defaults.gin').unlink()
  assert 'no gin file defaults.gin' in fake_commands.error(
    capsys, 'train', *fake_commands.GIVEN
  )


def test_include_cycle(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text("include 'run.gin'")
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  assert 'run.gin includes defaults.gin includes run.gin' in message


def test_required_macros_are_named_together(capsys):
  message = fake_commands.error(capsys, 'train')
  assert '--gin.MODEL_DIR=... (required by run.gin, line 7)' in message
  assert '--gin.TRAIN_STEPS=... (required by run.gin, line 8)' in message


def test_required_macro_with_a_flag(capsys, tmp_path):
  (tmp_path / 'run.gin').write_text(
    fake_commands.RUN_GIN.replace('PATH = None', 'PATH = %gin.REQUIRED')
  )
  assert 'give --checkpoint=... (' in fake_commands.error(
    capsys, 'train', *fake_commands.GIVEN
  )


def test_undefined_macro(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text('')
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  # Our own gin files that define such a macro would do, too.
  assert re.search(
    r'give (--gin_file=.*, or )?--gin\.LORA_RANK=\.\.\. '
    r'\(run\.gin, line 14 reads %LORA_RANK\)',
    message,
  )


def test_undefined_macro_suggests_our_files_that_define_it(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text('LORA_RANK = %MODEL')
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  assert '--gin_file=gin/models/' in message


def test_misspelt_macro_on_the_command_line(capsys):
  message = fake_commands.error(
    capsys, 'train', *fake_commands.GIVEN, '--gin.LORA_RNK=4'
  )
  assert 'LORA_RNK, which none of the gin files reads' in message
  assert 'did you mean LORA_RANK?' in message


def test_macro_that_only_another_file_reads(capsys):
  message = fake_commands.error(
    capsys, 'train', *fake_commands.GIVEN, '--gin.WIDTH=4'
  )
  assert 'WIDTH, which none of the gin files reads' in message


def test_text_without_quotes(capsys):
  message = fake_commands.error(capsys, 'train', '--gin.MODEL_DIR=runs/rm')
  assert '--gin.MODEL_DIR="\'runs/rm\'"' in message


@pytest.mark.parametrize(
  'value', ['[1, 2', '"runs', 'two words', '{[]: 1}', '@', '1 2']
)
def test_value_that_is_not_gin(capsys, value):
  message = fake_commands.error(capsys, 'train', f'--gin.MODEL_DIR={value}')
  assert f'--gin.MODEL_DIR={value}: {value} is not a gin value' in message


@pytest.mark.parametrize('arg', ['--gin.TRAIN_STEPS', '--gin.TRAIN_STEPS='])
def test_binding_without_a_value(capsys, arg):
  message = fake_commands.error(capsys, 'train', arg)
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
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  assert 'defaults.gin' in message
  assert complaint in message


def test_syntax_error_names_its_line(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text('# Defaults.\n\nA = b\n')
  assert 'defaults.gin, line 3' in fake_commands.error(
    capsys, 'train', *fake_commands.GIVEN
  )


def test_misspelt_parameter_in_a_file(capsys, tmp_path):
  (tmp_path / 'run.gin').write_text(
    fake_commands.RUN_GIN.replace('rank =', 'rnak =')
  )
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  assert 'run.gin, line 14' in message
  assert 'no parameter rnak; did you mean rank?' in message


def test_misspelt_parameter_on_the_command_line(capsys):
  arg = '--gin.fake_stage.train.zzz=4'
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN, arg)
  assert arg in message
  assert 'no parameter zzz; it has model_dir, train_steps' in message


def test_misspelt_configurable(capsys, tmp_path):
  (tmp_path / 'run.gin').write_text(
    fake_commands.RUN_GIN.replace('fake_stage.train:', 'fake_stage.trian:')
  )
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  assert 'run.gin, line 11' in message
  assert 'trian' in message


def test_misspelt_configurable_on_the_command_line(capsys):
  arg = '--gin.fake_stage.trian.rank=4'
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN, arg)
  assert arg in message


def test_misspelt_import(capsys, tmp_path):
  (tmp_path / 'run.gin').write_text(
    fake_commands.RUN_GIN.replace('import fake_stage', 'import fake_satge')
  )
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  assert "run.gin, line 3: The module 'fake_satge' cannot be found" in message


def test_a_fault_inside_an_import_is_named_by_its_line(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'broken_module.py').write_text('import module_that_is_missing\n')
  (tmp_path / 'run.gin').write_text(
    fake_commands.RUN_GIN.replace(
      'import fake_stage', 'import fake_stage\nimport broken_module'
    )
  )
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  assert "run.gin, line 4: The module 'broken_module' imports" in message
  assert "'module_that_is_missing', which is not installed" in message
  assert 'broken_module.py:1' in message


def test_the_run_file_is_read_first_whatever_else_is_given(tmp_path):
  call = fake_commands.call(
    'train', '--gin_file=model.gin', *fake_commands.GIVEN
  )
  assert (call['model_dir'], call['model'].width) == ('runs/a', 16)
  fake_stage.calls.clear()
  (tmp_path / 'mine.gin').write_text('LORA_RANK = 3\nTRAIN_STEPS = 7\n')
  # Given too, it is read once and first: it does not undo what stands before.
  call = fake_commands.call(
    'train',
    '--gin_file=mine.gin',
    '--gin_file=./run.gin',
    '--gin.MODEL_DIR="a"',
  )
  assert (call['rank'], call['train_steps']) == (3, 7)


@pytest.mark.parametrize(
  ('flag', 'wanted'),
  [
    (
      "--gin.TRAIN_STEPS='many'",
      "TRAIN_STEPS is 'many'; it must be a whole number of at least 1. It sets "
      "train.train_steps. (--gin.TRAIN_STEPS='many')",
    ),
    ('--gin.TRAIN_STEPS=0', 'TRAIN_STEPS is 0; it must be a whole number of'),
    ('--gin.LORA_RANK=True', 'LORA_RANK is True; it must be a whole number'),
    (
      '--gin.fake_stage.Model.depth=2.5',
      'Model.depth is 2.5; it must be a whole number. (--gin.fake_stage.Model',
    ),
    ("--gin.Model.depth='x'", "Model.depth is 'x'"),
    ("--gin.WIDTH='wide'", "WIDTH is 'wide'; it must be a whole number."),
    (
      '--gin.fake_stage.train.model="big"',
      "train.model is 'big'; it must be a",
    ),
  ],
)
def test_value_of_another_type(capsys, flag, wanted):
  message = fake_commands.error(
    capsys, 'train', '--gin_file=model.gin', *fake_commands.GIVEN, flag
  )
  assert wanted in message


def test_value_of_another_type_in_a_file_names_its_line(capsys, tmp_path):
  (tmp_path / 'defaults.gin').write_text("# Sizes.\nLORA_RANK = 'a'\n")
  message = fake_commands.error(capsys, 'train', *fake_commands.GIVEN)
  assert "LORA_RANK is 'a'" in message and '(defaults.gin, line 2)' in message
