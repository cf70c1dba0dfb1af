"""The grammar of the command line: flags of commands, and their help pages.

`perlhf COMMAND [--gin_file=F ...] [--gin.NAME=VALUE ...] [command flags]`

Flags are parsed by absl, each command with its own set, so that a flag of
another command is an error.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import math
import os
from typing import Any

from absl import flags as absl_flags

from perlhf_jax import gin_loading
from perlhf_jax import gin_scan
from perlhf_jax.core import errors

_GIN_HELP = """\
  --gin_file=FILE         a gin file; give the flag again for more, later ones
                          win. {default} is always read, first
  --gin.NAME=VALUE        sets a macro, or a parameter, after the files
  --gin_search_paths=A,B  more folders in which to look for gin files"""

_COLUMN = 34  # Where the notes on macros begin.

_DEFINITIONS = {
  bool: absl_flags.DEFINE_boolean,
  str: absl_flags.DEFINE_string,
  int: absl_flags.DEFINE_integer,
  float: absl_flags.DEFINE_float,
}


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of a command.

  Attributes:
    name: without the dashes.
    help: one line; starts in lower case.
    kind: str, int, float or bool.
    default: value if the flag is not given.
    required: whether it must be given.
    argument: argument of the command's function; the flag's name if None.
    macro: gin macro that the flag sets instead of an argument, if any.
    minimum: the least number allowed; None for 1 if an int, and for any
      number if a float.
  """

  name: str
  help: str
  kind: type = str
  default: Any = None
  required: bool = False
  argument: str | None = None
  macro: str | None = None
  minimum: float | None = None


# Arguments of `multihost.initialize`.
HOST_FLAGS = (
  Flag(
    'multihost',
    'find the other hosts from the environment: Cloud TPU, GKE, SLURM',
    bool,
    default=False,
  ),
  Flag('coordinator_address', 'HOST:PORT of process 0, any free port of it'),
  Flag('num_processes', 'how many processes there are', int),
  Flag('process_id', 'which of them this one is, from 0', int, minimum=0),
  Flag('connect_timeout', 'seconds to wait for the others to start', int, 300),
  Flag(
    'heartbeat_timeout',
    'seconds after which a silent process counts as lost',
    int,
    100,
  ),
)


# Arguments of `plan.check.check`.
CHECK_FLAGS = (
  Flag(
    'check',
    'check all that can be checked, and start nothing',
    bool,
    default=False,
  ),
  Flag(
    'topology',
    'with --check: the slice of Cloud TPU that it is for, such as v5e-16',
  ),
  Flag('num_devices', 'with --check: the devices that it is for', int),
)


@dataclasses.dataclass(frozen=True)
class Command:
  """A command.

  Attributes:
    help: one line for the overview.
    module: module of the function that does it, imported when it is called.
    function: the function's name.
    example: a command line that works.
    flags: the flags it takes.
    gin_file: the gin file that it reads first, before those that are given;
      None for a command that is not configured by gin.
    on_hosts: whether it can run on several hosts, and takes `HOST_FLAGS` and
      `CHECK_FLAGS`.
    compiles_for_others: whether its programs are for chips that are not here.
  """

  help: str
  module: str
  function: str
  example: str
  flags: tuple[Flag, ...] = ()
  gin_file: str | None = None
  on_hosts: bool = False
  compiles_for_others: bool = False


@dataclasses.dataclass(frozen=True)
class Arguments:
  """A parsed command line.

  Attributes:
    keywords: arguments of the command's function that flags give.
    gin_files: gin files, in order.
    bindings: gin bindings, those of flags last.
    search_paths: folders in which to look for gin files.
    hosts: values of `HOST_FLAGS` by name; None for a process without others.
    check: those of `CHECK_FLAGS` but for `check`; None to do the work.
  """

  keywords: dict[str, Any]
  gin_files: tuple[str, ...] = ()
  bindings: tuple[gin_loading.Binding, ...] = ()
  search_paths: tuple[str, ...] = ()
  hosts: dict[str, Any] | None = None
  check: dict[str, Any] | None = None


def parse(name: str, command: Command, args: Sequence[str]) -> Arguments:
  """Parses what stands after the command's name.

  Args:
    name: the command's name, for messages.
    command: the command.
    args: the arguments after the name.

  Returns:
    What they say.

  Raises:
    ConfigError: a flag is unknown, has a bad value or is missing.
  """
  values = _define(command)
  try:
    rest = values([name, *_rewrite_gin_bindings(name, command, args)])
  except absl_flags.UnrecognizedFlagError as error:
    close = difflib.get_close_matches(error.flagname, list(values), n=1)
    hint = f'did you mean --{close[0]}? ' if close else ''
    raise errors.ConfigError(
      f'perlhf {name} has no flag --{error.flagname}; '
      f'{hint}See perlhf {name} --help'
    ) from error
  except absl_flags.Error as error:
    raise errors.ConfigError(f'perlhf {name}: {error}') from error
  if rest[1:]:
    raise errors.ConfigError(
      f'perlhf {name}: unexpected argument {rest[1]!r}; values are written '
      '--flag=value, in quotes if they hold spaces'
    )
  for flag in command.flags:
    if flag.required and values[flag.name].value is None:
      raise errors.ConfigError(
        f'perlhf {name}: give --{flag.name}, {flag.help}'
      )
    if flag.kind is float and not _is_finite(values[flag.name].value):
      raise errors.ConfigError(
        f'perlhf {name}: --{flag.name}={values[flag.name].value} is not a '
        'finite number'
      )
  return _arguments(command, values)


def overview(commands: Mapping[str, Command]) -> str:
  """Gives the page that `perlhf --help` prints."""
  width = max(map(len, commands))
  lines = [f'  {name:{width}}  {c.help}' for name, c in commands.items()]
  return '\n'.join(
    [
      'Parameter-efficient RLHF for encoder-decoder models.',
      '',
      'perlhf COMMAND [--gin_file=FILE ...] [--gin.NAME=VALUE ...] [flags]',
      '',
      *lines,
      '',
      'perlhf COMMAND --help tells what a command takes.',
      '',
      'Of the environment: PERLHF_DATA_DIR is the folder of the data.',
      'PERLHF_START_CACHE is the folder where tokens and compiled programs are',
      'kept for the next start (~/.cache/perlhf_jax), or off.',
      'PERLHF_VERIFY=off reads checkpoints without checking their contents.',
    ]
  )


def help_page(name: str, command: Command, args: Sequence[str] = ()) -> str:
  """Gives the page that `perlhf COMMAND --help` prints.

  Args:
    name: the command's name.
    command: the command.
    args: the other arguments; gin files among them are the ones described.

  Returns:
    The page.

  Raises:
    ConfigError: `args` hold a mistake.
  """
  lines = [f'perlhf {name}: {command.help}', '', 'Flags:']
  lines += map(_describe_flag, command.flags)
  if command.gin_file:
    lines.append(_GIN_HELP.format(default=command.gin_file))
  if command.on_hosts:
    lines += ['', 'Before it starts:']
    lines += map(_describe_flag, CHECK_FLAGS)
    lines += ['', 'On several hosts, the same command on each, with:']
    lines += map(_describe_flag, HOST_FLAGS)
  if command.gin_file:
    given = parse(name, _without_required(command), args)
    lines += ['', *_describe_macros(given.gin_files, given.search_paths)]
  lines += ['', 'Example:', f'  {_wrapped(command.example)}']
  return '\n'.join(lines)


def _define(command: Command) -> absl_flags.FlagValues:
  """Defines a command's flags."""
  values = absl_flags.FlagValues()
  values.set_gnu_getopt(True)
  for flag in (*command.flags, *_shared_flags(command)):
    limits = {}
    if flag.minimum is not None or flag.kind is int:
      limits['lower_bound'] = 1 if flag.minimum is None else flag.minimum
    _DEFINITIONS[flag.kind](
      flag.name, flag.default, flag.help, flag_values=values, **limits
    )
  if command.gin_file:
    for gin_flag in 'gin_file', 'gin_bindings':
      absl_flags.DEFINE_multi_string(gin_flag, [], '', flag_values=values)
    absl_flags.DEFINE_list('gin_search_paths', [], '', flag_values=values)
  return values


def _shared_flags(command: Command) -> tuple[Flag, ...]:
  """Gives the flags that all commands on hosts take."""
  return (*CHECK_FLAGS, *HOST_FLAGS) if command.on_hosts else ()


def names_hosts(args: Sequence[str]) -> bool:
  """Says whether arguments, parsed or not, start one of several processes."""
  names = {flag.name for flag in HOST_FLAGS}
  given = {arg.lstrip('-').partition('=')[0] for arg in args}
  return bool(given & names) and 'check' not in given


def _rewrite_gin_bindings(
  name: str, command: Command, args: Sequence[str]
) -> list[str]:
  """Turns `--gin.NAME=VALUE`, which absl cannot read, into `--gin_bindings`."""
  rewritten = []
  for arg in args:
    _, is_binding, binding = arg.partition('-gin.')
    if not is_binding or arg.lstrip('-') != f'gin.{binding}':
      rewritten.append(arg)
    elif not command.gin_file:
      raise errors.ConfigError(
        f'perlhf {name} is not configured by gin, so that {arg} says nothing; '
        f'see perlhf {name} --help'
      )
    elif '=' not in binding:
      raise errors.ConfigError(
        f'{arg} gives no value: write --gin.{binding}=VALUE'
      )
    else:
      rewritten.append(f'--gin_bindings={binding}')
  return rewritten


def _arguments(command: Command, values: absl_flags.FlagValues) -> Arguments:
  """Reads the values of parsed flags."""
  keywords = {}
  macros = []
  for flag in command.flags:
    value = values[flag.name].value
    if not flag.macro:
      keywords[flag.argument or flag.name] = value
    elif value is not None:
      macros.append(
        gin_loading.Binding(
          f'{flag.macro} = {value!r}', f'--{flag.name}={value}'
        )
      )
  hosts = check = None
  if command.on_hosts:
    given = {flag.name: values[flag.name] for flag in HOST_FLAGS}
    if any(flag.present and flag.value is not False for flag in given.values()):
      hosts = {name: flag.value for name, flag in given.items()}
    check = {f.name: values[f.name].value for f in CHECK_FLAGS}
    if check.pop('check'):
      hosts = None
    else:
      for name, value in check.items():
        if value is not None:
          raise errors.ConfigError(
            f'--{name} says for what to check a command: give --check too.'
          )
      check = None
  if not command.gin_file:
    return Arguments(keywords, hosts=hosts, check=check)
  bindings = [
    gin_loading.Binding(text, f'--gin.{text}')
    for text in values['gin_bindings'].value
  ]
  return Arguments(
    keywords,
    gin_files=_gin_files(command.gin_file, values['gin_file'].value),
    bindings=(*bindings, *macros),
    search_paths=tuple(values['gin_search_paths'].value),
    hosts=hosts,
    check=check,
  )


def _gin_files(own: str, given: Sequence[str]) -> tuple[str, ...]:
  """Puts a command's own run file first, once, whether it is given or not."""
  return own, *(file for file in given if os.path.normpath(file) != own)


def _without_required(command: Command) -> Command:
  """Gives the command with all flags optional."""
  return dataclasses.replace(
    command,
    flags=tuple(
      dataclasses.replace(flag, required=False) for flag in command.flags
    ),
  )


def _is_finite(value: float | None) -> bool:
  """Whether a number, if given, is neither infinite nor NaN."""
  return value is None or math.isfinite(value)


def _describe_flag(flag: Flag) -> str:
  """Gives a flag's line of a help page."""
  return f'  --{flag.name:22}{flag.help}{_describe_default(flag)}'


def _describe_default(flag: Flag) -> str:
  """Says whether a flag must be given, or what stands for it."""
  if flag.required:
    return ' (required)'
  is_plain = flag.default is None or flag.default is False
  return '' if is_plain else f' (default {flag.default})'


def _describe_macros(
  files: Sequence[str], search_paths: Sequence[str]
) -> list[str]:
  """Lists the macros of gin files: those to give, and those one may give."""
  scan = gin_scan.Scan()
  for file in files:
    gin_scan.scan_file(scan, file, search_paths)
  lines = [f'To be given, as --gin.NAME=VALUE, with {", ".join(files)}:']
  lines += [_described(name, scan.notes.get(name)) for name in scan.required()]
  by_file: dict[str, list[str]] = {}
  for name in scan.undefined():
    defining = gin_scan.files_defining(name, limit=1)
    note = f'for example by --gin_file={defining[0]}' if defining else ''
    by_file.setdefault(note, []).append(name)
  lines += [_described(', '.join(n), note) for note, n in by_file.items()]
  lines += ['', 'May be given:']
  for name, (value, _) in scan.macros.items():
    if name not in scan.required():
      given = f'{name} = {_written(value)}'
      lines.append(_described(given, scan.notes.get(name)))
  return lines


def _described(name: str, note: str | None) -> str:
  """Gives a line of a help page, or two if one would be long."""
  if not note:
    return f'  {name}'
  if len(name) < _COLUMN:
    return f'  {name:{_COLUMN}}{note}'
  return f'  {name}\n  {"":{_COLUMN}}{note}'


def _wrapped(example: str) -> str:
  """Breaks a long command line before its flags, as a shell reads it."""
  if len(example) <= 78:
    return example
  return example.replace(' --', ' \\\n    --')


def _written(value: Any) -> str:
  """Writes a scanned value as gin does."""
  if isinstance(value, gin_scan.Macro):
    return f'%{value.name}'
  if isinstance(value, gin_scan.Reference):
    return f'@{value.name}'
  return repr(value)
