"""Parses the command line with absl.

`perlhf COMMAND [--gin_file=F ...] [--gin.NAME=VALUE ...] [command flags]`

Each command has its own set of flags; a flag of another command is an error.
"""

from collections.abc import Sequence
import re
from typing import Any, NamedTuple

from absl import flags as absl_flags

from perlhf_jax.cli import commands
from perlhf_jax.cli import gin_scan
from perlhf_jax.cli.commands import Command
from perlhf_jax.core import errors


class Arguments(NamedTuple):
  """A parsed command line.

  Attributes:
    keywords: values of the command's own flags, by argument.
    scan: scan of the gin files and bindings; None for a command without gin.
    hosts: values of the host flags; None for a single process.
    check: values of the check flags; None to run the command.
  """

  keywords: dict[str, Any]
  scan: gin_scan.Scan | None
  hosts: dict[str, Any] | None
  check: dict[str, Any] | None


def names_hosts(args: Sequence[str]) -> bool:
  """Returns whether arguments have host flags, for one of several processes."""
  given = {arg.lstrip('-').partition('=')[0] for arg in args}
  names = {flag.name for flag in commands.host_flags()}
  return bool(given & names) and commands.CHECK.name not in given


def parse(
  name: str, command: Command, args: Sequence[str], complete: bool = True
) -> Arguments:
  """Parses the arguments after a command's name.

  Raises:
    ConfigError: a flag is unknown or has a bad value; a gin file is missing or
      bad; or `complete` is set and a required flag or macro is missing.
  """
  groups = command.flags, command.host_flags, command.check_flags
  values = absl_flags.FlagValues()
  values.set_gnu_getopt(True)
  for flag in sum(groups, ()):
    flag.define(values)
  if command.gin_file:
    for gin_flag in 'gin_file', 'gin_bindings':
      absl_flags.DEFINE_multi_string(gin_flag, [], '', flag_values=values)
    absl_flags.DEFINE_list('gin_search_paths', [], '', flag_values=values)
  try:
    rest = values([name, *(_rewritten(command, arg) for arg in args)])[1:]
    if rest:
      raise errors.ConfigError(
        f'unexpected argument {rest[0]!r}; values are written --flag=value, in '
        'quotes if they hold spaces'
      )
    for flag in command.flags if complete else ():
      if flag.required and values[flag.name].value is None:
        raise errors.ConfigError(f'give --{flag.name}, {flag.help}')
    own, hosts, check = (
      {flag.argument: values[flag.name].value for flag in group}
      for group in groups
    )
    is_check = check.pop(commands.CHECK.name, False)
    for option, value in check.items():
      if value is not None and not is_check:
        raise errors.ConfigError(
          f'--{option} only has an effect with --check: give --check too'
        )
  except absl_flags.UnrecognizedFlagError as error:
    hint = gin_scan.did_you_mean(error.flagname, values, '--')
    raise errors.ConfigError(
      f'perlhf {name} has no flag --{error.flagname}{hint} '
      f'(see perlhf {name} --help)'
    ) from error
  except (absl_flags.Error, errors.ConfigError) as error:
    raise errors.ConfigError(f'perlhf {name}: {error}') from error
  has_others = any(
    values[each].present and value is not False for each, value in hosts.items()
  )
  return Arguments(
    own,
    _scan(command, own, values, complete) if command.gin_file else None,
    hosts if has_others and not is_check else None,
    check if is_check else None,
  )


def _rewritten(command: Command, arg: str) -> str:
  """Rewrites `--gin.NAME=VALUE`, which absl cannot parse, to a gin binding."""
  match = re.fullmatch(r'--?gin\.([^=]*)=?(.*)', arg, re.DOTALL)
  if not match:
    return arg
  name, value = match.groups()
  if not command.gin_file:
    raise errors.ConfigError(f'not configured by gin, so {arg} has no effect')
  if not value.strip():
    raise errors.ConfigError(f'{arg} gives no value: write --gin.{name}=VALUE')
  return f'--gin_bindings={name}={value}'


def _scan(
  command: Command,
  own: dict[str, Any],
  values: absl_flags.FlagValues,
  complete: bool,
) -> gin_scan.Scan:
  """Scans gin files and bindings; bindings made from flags come last."""
  files, bindings, paths = (
    values[f'gin_{each}'].value for each in ('file', 'bindings', 'search_paths')
  )
  given = [(text, f'--gin.{text}') for text in bindings]
  for flag in command.flags:
    if (value := own[flag.argument]) is not None:
      text = f'{command.macros[flag.argument]} = {value!r}'
      given.append((text, f'--{flag.name}={value}'))
  scan = gin_scan.Scan(command.gin_file, files, paths, given)
  if complete:
    macros = command.macros.items()
    scan.complete({macro: argument for argument, macro in macros})
  return scan
