"""Tests that the table of commands, the stages and the gin files agree."""

import inspect
import pathlib
import pydoc
import shlex

import pytest

from perlhf_jax.cli import command_line
from perlhf_jax.cli import commands
from perlhf_jax.cli import flags as flags_lib
from perlhf_jax.cli import gin_scan
from perlhf_jax.cli import main
from perlhf_jax.core import gin_text

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIN_FILES = sorted((ROOT / 'gin').glob('**/*.gin'))
GIN_COMMANDS = [name for name, c in commands.COMMANDS.items() if c.gin_file]


def _signature_of(command):
  return inspect.signature(pydoc.locate(command.function)).parameters


def _bound(command):
  """What the command's own gin file binds of its function."""
  scan = gin_scan.Scan(command.gin_file)
  _, module, function = command.function.rsplit('.', 2)
  prefix = f'{module}.{function}.'
  return {
    key.removeprefix(prefix): value
    for key, (value, _) in scan.parameters.items()
    if key.startswith(prefix)
  }


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_flags_say_what_the_function_says(name):
  command = commands.COMMANDS[name]
  parameters = _signature_of(command)
  for flag in flags_lib.of(command.function):
    parameter = parameters[flag.argument]
    assert repr(flag.annotation) == repr(parameter.annotation), flag.name
    assert flag.required == (parameter.default is parameter.empty), flag.name
    assert flag.required or flag.default == parameter.default, flag.name


@pytest.mark.parametrize(
  'name', sorted(set(commands.COMMANDS) - set(GIN_COMMANDS))
)
def test_every_argument_has_a_flag(name):
  command = commands.COMMANDS[name]
  flags = {flag.argument for flag in command.flags}
  assert flags == set(_signature_of(command))


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_every_flag_has_a_meaning(name):
  command = commands.COMMANDS[name]
  for flag in (*command.flags, *command.host_flags, *command.check_flags):
    assert flag.help[:1].islower() or flag.help[:4] == 'HOST', flag


@pytest.mark.parametrize('name', GIN_COMMANDS)
def test_flags_set_the_macros_that_the_gin_file_binds(name):
  command = commands.COMMANDS[name]
  bound = _bound(command)
  macros = dict(command.macros)
  scan = gin_scan.Scan(command.gin_file)
  assert {flag.argument for flag in command.flags} == macros.keys()
  mesh, _ = scan.parameters.get('partitioning.Partitioner.mesh_shape', (0, ''))
  # A sweep uses no devices; its runs do.
  assert bool(mesh) == ('mesh_shape' in macros) == (name != 'sweep')
  if mesh:
    assert mesh == gin_text.Macro(macros.pop('mesh_shape'))
  for argument, macro in macros.items():
    assert bound[argument] == gin_text.Macro(macro)


@pytest.mark.parametrize('name', GIN_COMMANDS)
def test_gin_file_binds_what_must_be_given(name):
  command = commands.COMMANDS[name]
  bound = _bound(command)
  parameters = _signature_of(command)
  must = {n for n, p in parameters.items() if p.default is p.empty}
  assert must <= bound.keys() <= parameters.keys()


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_example_is_complete(name):
  command = commands.COMMANDS[name]
  program, given_name, *args = shlex.split(command.example)
  assert (program, given_name) == ('perlhf', name)
  command_line.parse(name, command, args)


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_help_page(name, capsys):
  assert main.run([name, '--help']) == 0
  assert commands.COMMANDS[name].help in capsys.readouterr().out


@pytest.mark.parametrize(
  'path', GIN_FILES, ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_gin_file_reads_and_says_what_it_is(path):
  scan = gin_scan.Scan(str(path))
  assert scan.macros or scan.parameters
  text = path.read_text(encoding='utf-8')
  assert text.startswith('# ')
  for module, place in scan.imports:
    if module.startswith('perlhf_jax.'):
      assert (ROOT / f'{module.replace(".", "/")}.py').exists(), place
