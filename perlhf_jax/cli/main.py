"""The command line: `perlhf COMMAND ...`, or `python -m perlhf_jax`.

User errors (`errors.UserError`) and environment failures, such as a full disk,
are printed as one message without a traceback and end with exit code 2. A run
that was told to stop, that lost or did not reach another host, or whose network
failed, ends with exit code 75 (EX_TEMPFAIL): started again, the same command
resumes. Any other error is a bug of this library and keeps its traceback.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import importlib
import signal
import sys
from typing import Any

import gin

from perlhf_jax import logs
from perlhf_jax.cli import command_line
from perlhf_jax.cli import commands as commands_lib
from perlhf_jax.cli import gin_loading
from perlhf_jax.cli import gin_scan
from perlhf_jax.cli import help_pages
from perlhf_jax.cli import hosts
from perlhf_jax.cli import program_cache
from perlhf_jax.cli.commands import Command
from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.core import outside
from perlhf_jax.core import sigterm
from perlhf_jax.core import user_code

_HELP = ('--help', '-h')
_TOLD = (
  'stopped by SIGTERM. Files that were saved are kept; start the same command '
  'again to go on.'
)


def run(
  argv: Sequence[str], commands: Mapping[str, Command] = commands_lib.COMMANDS
) -> int:
  """Runs a command line, given without the program's name.

  Returns:
    The exit code: 0; 2 after a user error or an environment failure; 75 if the
    same command resumes when it is started again; 130 if interrupted.
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
  argv = sys.argv[1:]
  if command_line.names_hosts(argv):
    sys.exit(hosts.supervised(lambda: run(argv)))
  code = run(argv)
  # All is said and done: a launcher must not hear that it was not.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  sys.exit(code)


def _run(argv: Sequence[str], commands: Mapping[str, Command]) -> None:
  """Runs a command line; mistakes are UserErrors."""
  name, *args = argv or _HELP
  if name in _HELP:
    print(help_pages.overview(commands))
    return
  if name not in commands:
    hint = gin_scan.did_you_mean(name, commands)
    raise errors.ConfigError(
      f'no command {name}{hint} (the command comes first, and is one of '
      f'{", ".join(commands)})'
    )
  command = commands[name]
  others = [arg for arg in args if arg not in _HELP]
  if len(others) < len(args):
    print(help_pages.page(name, command, others))
    return
  arguments = command_line.parse(name, command, args)
  with contextlib.ExitStack() as stack:
    if command.on_hosts:  # A launcher may start it again.
      stack.enter_context(sigterm.ends(errors.GOES_ON, _TOLD))
    _call(name, command, arguments)


def _call(
  name: str, command: Command, arguments: command_line.Arguments
) -> None:
  """Loads a command and runs it."""
  if command.compiles_for_others or arguments.check is not None:
    program_cache.forbid()
  else:
    program_cache.use()
  load = functools.partial(_load, command, arguments)
  if arguments.hosts is None:
    call, _ = load()
  else:
    call = hosts.load_together(arguments.hosts, [f'command: {name}'], load)
  call()


def _load(
  command: Command, arguments: command_line.Arguments
) -> tuple[Callable[[], Any], str]:
  """Returns the call that runs the command, and its configuration as text."""
  with logs.without_noise():  # TensorFlow prints when it is imported.
    module, _, name = command.function.rpartition('.')
    function = getattr(importlib.import_module(module), name)
    if arguments.scan is None:
      call = functools.partial(function, **arguments.keywords)
      values = functools.partial(dict, arguments.keywords)
      given = arguments.keywords.items()
      text = '\n'.join(f'{name}: {value}' for name, value in given)
    else:
      call = gin_loading.load(arguments.scan, function)
      values = functools.partial(gin.get_bindings, function)
      text = operative_config.config_text()
    if arguments.check is None:
      return call, text
    from perlhf_jax.plan import check
  return lambda: check.check(function, values(), **arguments.check), text
