"""Tests that the table of commands, the stages and the gin files agree."""

import ast
import pathlib
import shlex

import pytest

from perlhf_jax import command_line
from perlhf_jax import commands
from perlhf_jax import gin_loading
from perlhf_jax import gin_scan
from perlhf_jax import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIN_FILES = sorted((ROOT / 'gin').glob('**/*.gin'))
GIN_COMMANDS = [name for name, c in commands.COMMANDS.items() if c.gin_file]


def _arguments_of(command):
  """Reads a function's arguments from its source: importing takes seconds."""
  path = (ROOT / command.module.replace('.', '/')).with_suffix('.py')
  for node in ast.parse(path.read_text(encoding='utf-8')).body:
    if isinstance(node, ast.FunctionDef) and node.name == command.function:
      arguments = node.args
      return {
        argument.arg
        for argument in (
          *arguments.posonlyargs,
          *arguments.args,
          *arguments.kwonlyargs,
        )
      }
  raise AssertionError(f'{path} has no function {command.function}')


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_flags_are_arguments_of_the_function(name):
  command = commands.COMMANDS[name]
  flags = {
    flag.argument or flag.name for flag in command.flags if not flag.macro
  }
  assert flags <= _arguments_of(command)


@pytest.mark.parametrize('name', GIN_COMMANDS)
def test_flags_set_macros_that_the_gin_file_reads(name):
  command = commands.COMMANDS[name]
  scan = gin_scan.Scan()
  gin_scan.scan_file(scan, command.gin_file)
  assert {f.macro for f in command.flags if f.macro} <= scan.uses().keys()


@pytest.mark.parametrize('name', GIN_COMMANDS)
def test_gin_file_gives_every_argument_it_names(name):
  command = commands.COMMANDS[name]
  scan = gin_scan.Scan()
  gin_scan.scan_file(scan, command.gin_file)
  prefix = f'{command.module.rsplit(".", 1)[-1]}.{command.function}.'
  bound = {
    key.removeprefix(prefix)
    for key in scan.parameters
    if key.startswith(prefix)
  }
  assert bound
  assert bound <= _arguments_of(command)


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_example_is_complete(name):
  command = commands.COMMANDS[name]
  program, given_name, *args = shlex.split(command.example)
  assert (program, given_name) == ('perlhf', name)
  arguments = command_line.parse(name, command, args)
  if command.gin_file:
    flags = {flag.macro: flag.name for flag in command.flags if flag.macro}
    gin_loading.read(arguments.gin_files, arguments.bindings, flags=flags)


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_help_page(name, capsys):
  assert main.run([name, '--help']) == 0
  assert commands.COMMANDS[name].help in capsys.readouterr().out


@pytest.mark.parametrize(
  'path', GIN_FILES, ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_gin_file_reads_and_says_what_it_is(path):
  scan = gin_scan.Scan()
  gin_scan.scan_file(scan, str(path))
  assert scan.macros or scan.parameters
  text = path.read_text(encoding='utf-8')
  assert text.startswith('# ')
  for statement in scan.imports:
    module = statement.module.replace('.', '/')
    if module.startswith('perlhf_jax/'):
      assert (ROOT / f'{module}.py').exists(), statement
