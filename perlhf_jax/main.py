"""The command line: `perlhf COMMAND ...`, or `python -m perlhf_jax.main`.

Mistakes in what the user gave (`errors.UserError`) are printed in one message
without a traceback and end with exit code 2, and so do failures of the outside
world, such as a full disk. A run that was told to stop, that lost another host
or did not meet it, or whose network failed, ends with exit code 75
(EX_TEMPFAIL): started again, the same command goes on. Anything else is a fault
of this library and keeps its traceback.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import difflib
import functools
import importlib
import sys
from typing import Any

from perlhf_jax import command_line
from perlhf_jax import commands as commands_lib
from perlhf_jax import gin_loading
from perlhf_jax import hosts
from perlhf_jax import logs
from perlhf_jax import program_cache
from perlhf_jax.command_line import Arguments
from perlhf_jax.command_line import Command
from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.core import outside
from perlhf_jax.core import sigterm
from perlhf_jax.core import user_code

_HELP = ('--help', '-h')
_TOLD = (
  'stopped by SIGTERM. What was saved before is kept; started again, the same '
  'command goes on.'
)


def run(
  argv: Sequence[str], commands: Mapping[str, Command] = commands_lib.COMMANDS
) -> int:
  """Runs a command line.

  Args:
    argv: the arguments, without the program's name.
    commands: the commands there are.

  Returns:
    The exit code: 0, 2 after a mistake of the user's or a failure outside, 75
    if the same command goes on when it is started again, 130 if interrupted.
  """
  try:
    _run(argv, commands)
  except errors.UserError as error:
    print(f'perlhf: error: {user_code.original(error)}', file=sys.stderr)
    return error.exit_code
  except errors.PreemptedError as error:
    print(f'perlhf: {user_code.original(error)}', file=sys.stderr)
    return errors.GOES_ON
  except KeyboardInterrupt:
    print('perlhf: interrupted', file=sys.stderr)
    return 130
  except Exception as error:
    failed = outside.as_user_error(error)
    if failed is None:
      raise
    print(f'perlhf: error: {failed}', file=sys.stderr)
    return failed.exit_code
  return 0


def cli() -> None:
  """Runs this process's own command line and exits."""
  logs.show()
  # So that MIXTURE_OR_TASK_MODULE finds a file of the current folder. Last,
  # so that no file there hides a library.
  sys.path.append('')
  argv = sys.argv[1:]
  if command_line.names_hosts(argv):
    sys.exit(hosts.supervised(lambda: run(argv)))
  sys.exit(run(argv))


def _run(argv: Sequence[str], commands: Mapping[str, Command]) -> None:
  """Runs a command line; mistakes are UserErrors."""
  if not argv or argv[0] in _HELP:
    print(command_line.overview(commands))
    return
  name, *args = argv
  command = _find(name, commands)
  others = [arg for arg in args if arg not in _HELP]
  if len(others) < len(args):
    print(command_line.help_page(name, command, others))
    return
  arguments = command_line.parse(name, command, args)
  with contextlib.ExitStack() as stack:
    if command.on_hosts:  # A launcher starts it again.
      stack.enter_context(sigterm.ends(errors.GOES_ON, _TOLD))
    _call(name, command, arguments)


def _call(name: str, command: Command, arguments: Arguments) -> None:
  """Loads a command and does what it says."""
  if command.compiles_for_others or arguments.check is not None:
    program_cache.forbid()
  else:
    program_cache.use()
  if arguments.hosts is None:
    call, _ = _load(command, arguments)
  else:
    call = hosts.load_together(
      arguments.hosts,
      [f'command: {name}'],
      lambda: _load(command, arguments),
    )
  call()


def _load(
  command: Command, arguments: Arguments
) -> tuple[Callable[[], Any], str]:
  """Gives the call that does the command, and its configuration as text."""
  if not command.gin_file:
    with logs.without_noise():
      function = _function(command)
      call = functools.partial(function, **arguments.keywords)
    if arguments.check is not None:
      call = _check(function, lambda: arguments.keywords, arguments.check)
    values = arguments.keywords.items()
    return call, '\n'.join(f'{name}: {value}' for name, value in values)
  config = gin_loading.read(
    arguments.gin_files,
    arguments.bindings,
    arguments.search_paths,
    {flag.macro: flag.name for flag in command.flags if flag.macro},
  )
  with logs.without_noise():
    function = _function(command)
    call = gin_loading.load(config, function)
  if arguments.check is not None:
    call = _check(
      function, lambda: gin_loading.arguments_of(function), arguments.check
    )
  return call, operative_config.config_text()


def _check(
  function: Callable[..., Any],
  values: Callable[[], Mapping[str, Any]],
  options: Mapping[str, Any],
) -> Callable[[], Any]:
  """Gives the call that checks a command's function in its place."""
  with logs.without_noise():
    from perlhf_jax.plan import check
  return lambda: check.check(function, values(), **options)


def _find(name: str, commands: Mapping[str, Command]) -> Command:
  """Finds a command by name."""
  if name in commands:
    return commands[name]
  if name.startswith('-'):
    raise errors.ConfigError(
      f'the command comes first: perlhf COMMAND {name} ... '
      f'(one of {", ".join(commands)})'
    )
  close = difflib.get_close_matches(name, commands, n=1)
  hint = f'did you mean {close[0]}? ' if close else ''
  raise errors.ConfigError(
    f'no command {name}; {hint}There are {", ".join(commands)}'
  )


def _function(command: Command):
  """Imports a command's function; takes seconds for those that read data."""
  return getattr(importlib.import_module(command.module), command.function)


if __name__ == '__main__':
  cli()
