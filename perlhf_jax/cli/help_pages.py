"""The pages that `perlhf --help` and `perlhf COMMAND --help` print."""

from collections.abc import Iterator, Mapping, Sequence
import textwrap

from perlhf_jax.cli import command_line
from perlhf_jax.cli import flags
from perlhf_jax.cli import gin_scan
from perlhf_jax.cli.commands import Command

_OVERVIEW = """\
Parameter-efficient RLHF for encoder-decoder models.

perlhf COMMAND [--gin_file=FILE ...] [--gin.NAME=VALUE ...] [flags]

{commands}

perlhf COMMAND --help lists the flags and settings of a command.

Environment variables: PERLHF_DATA_DIR is the folder of the data.
PERLHF_START_CACHE is the folder where tokens and compiled programs are
kept for the next start (~/.cache/perlhf_jax), or off.
PERLHF_VERIFY=off reads checkpoints without checking their contents."""
_GIN = (
  ('gin_file=FILE', 'a gin file; give the flag again for more, later ones win'),
  ('gin.NAME=VALUE', 'sets a macro, or a parameter, after the files'),
  ('gin_search_paths=A,B', 'more folders in which to look for gin files'),
)
_WIDTHS = 24, 34  # Column widths of flags and of macros.


def overview(commands: Mapping[str, Command]) -> str:
  """Returns the page that `perlhf --help` prints."""
  width = max(map(len, commands))
  lines = [f'  {name:{width}}  {each.help}' for name, each in commands.items()]
  return _OVERVIEW.format(commands='\n'.join(lines))


def page(name: str, command: Command, args: Sequence[str] = ()) -> str:
  """Returns the page that `perlhf COMMAND --help` prints.

  The page also describes gin files among `args`.

  Raises:
    ConfigError: `args` have a mistake.
  """
  given = command_line.parse(name, command, args, complete=False)
  lines = [f'perlhf {name}: {command.help}', '', 'Flags:']
  lines += map(_flag, command.flags)
  if command.gin_file:
    lines += [_row(f'--{flag}', note, _WIDTHS[0]) for flag, note in _GIN]
  if command.on_hosts:
    lines += ['', 'Before it starts:', *map(_flag, command.check_flags)]
    lines += ['', 'On several hosts, the same command on each, with:']
    lines += map(_flag, command.host_flags)
  if given.scan:
    lines += _macros(given.scan)
  example = command.example
  if len(example) > 78:
    example = example.replace(' --', ' \\\n    --')
  return '\n'.join([*lines, '', 'Example:', f'  {example}'])


def _flag(flag: flags.Flag) -> str:
  return _row(f'--{flag.name}', flag.note, _WIDTHS[0])


def _macros(scan: gin_scan.Scan) -> Iterator[str]:
  """Lists the macros of gin files: required ones, then optional ones."""
  yield ''
  files = ', '.join(name for name, _ in scan.files)
  yield f'Required, as --gin.NAME=VALUE, with {files}:'
  required = scan.required()
  for name in required:
    yield _row(name, scan.notes.get(name, ''))
  ways: dict[str, list[str]] = {}
  for name in scan.undefined():
    file = next(iter(gin_scan.files_defining(name)), None)
    ways.setdefault(f'for example --gin_file={file}', []).append(name)
  for way, names in ways.items():
    yield _row(', '.join(names), '' if way.endswith('None') else way)
  yield from ('', 'Optional:')
  for name, (value, _) in scan.macros.items():
    if name not in required:
      yield _row(f'{name} = {value!r}', scan.notes.get(name, ''))


def _row(name: str, note: str, width: int = _WIDTHS[1]) -> str:
  """Formats a name with its note in the next column, or below a long name."""
  lines = textwrap.wrap(note, 78 - width) if note else ['']
  if len(name) >= width:
    lines.insert(0, '')
  return '\n'.join(
    f'  {name if not number else "":{width}}{line}'.rstrip()
    for number, line in enumerate(lines)
  )
