"""A place in which printed commands run as they stand, by a real shell.

The shell calls stand-ins. Those of perlhf and Python hand the call over to this
process, which has everything imported already, and where models, data and
numbers of steps are tiny. Those of clouds and clusters do nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import importlib
import io
import json
import os
import pathlib
import re
import runpy
import shutil
import socketserver
import subprocess
import sys
import traceback
from typing import Any, NamedTuple
from unittest import mock

import gin
import printed_commands
import printed_small
import seqio

from perlhf_jax import logs
from perlhf_jax.checkpoints.formats import registry
from perlhf_jax.cli import command_line
from perlhf_jax.cli import commands
from perlhf_jax.cli import main
from perlhf_jax.core import errors

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TESTS = ROOT / 'tests'

# Their own tests run them; here they only have to be there.
_LONG_SCRIPTS = (
  'build_docs.sh',
  'check_package.sh',
  'gpu_check.sh',
  'run_tests.sh',
  'setup_venv.sh',
)
_CLOUDS = (
  'docker',
  'gcloud',
  'git',
  'kubectl',
  'pip',
  'python3',
  'sbatch',
  'seqio_cache_tasks',
  'ssh',
  'ssh-add',
  'ssh-agent',
  'ssh-keygen',
  'tensorboard',
  'xpk',
)
# A launcher finds its slice at once, and can hand over a manifest. A virtual
# environment has tools of the same kind, which install nothing.
_CLOUD = """#!/bin/bash
[[ "$*" != *state.state* ]] || echo ACTIVE
[[ "$*" != *--filename=- ]] || cat >/dev/null
[[ "$*" != "-m venv "* ]] || {
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip"
}
"""
# What `perlhf plan` has been asked for already, by any test.
_PLANNED: set[tuple[str, ...]] = set()
# What was printed between two of them belongs to the place that they name.
_MARK = '@@@ '
# Characters of what a command printed that a failure repeats.
_SHOWN = 2000


class Failure(NamedTuple):
  """A command that did not work, as it was typed, and what it said."""

  place: str
  command: str
  output: str

  def __str__(self):
    return f'{self.place}\n  {self.command}\n{self.output}'


class World:
  """A folder in which a reader types.

  Attributes:
    folder: where the shell starts.
    is_checkout: whether it is the top of a checkout.
    calls: the arguments of every call of perlhf that was typed.
    failures: the commands that failed.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    is_checkout: bool,
    trained_by: 'World | None' = None,
  ):
    """Makes the folder.

    Args:
      folder: to make it in.
      is_checkout: whether to make it look like the top of a checkout.
      trained_by: a world whose models are there too.
    """
    self.folder = folder / 'here'
    self.is_checkout = is_checkout
    self.calls: list[list[str]] = []
    self.failures: list[Failure] = []
    self._outside = folder
    self._buckets = f'{folder}/buckets/'
    self._only_check = False
    self.folder.mkdir(parents=True)
    self._write_models()
    self._write_data()
    self._write_tools()
    if is_checkout:
      self._check_out()
    if trained_by is not None:
      self._take_over(trained_by)

  @property
  def printed(self) -> str:
    """What the last pieces printed."""
    return (self._outside / 'output').read_text()

  def type_in(
    self, pieces: Iterable[printed_commands.Piece], *, only_check: bool = False
  ) -> None:
    """Types pieces into one shell, in order.

    Args:
      pieces: commands, and files to write.
      only_check: perlhf checks what it is to do, where it can.
    """
    self._only_check = only_check
    script = self._outside / 'script.sh'
    script.write_text(self._script(pieces))
    # A short path: those of sockets may have 107 characters.
    address = f'/tmp/perlhf_{os.getpid()}.socket'
    shell_environment = {
      'PATH': f'{self._outside / "bin"}:/usr/bin:/bin',
      'HOME': str(self._outside),
      'PERLHF_TEST_SOCKET': address,
    }
    output = self._outside / 'output'
    with (
      open(output, 'w') as file,
      socketserver.UnixStreamServer(address, self._handler()) as server,
    ):
      server.timeout = 0.1
      shell = subprocess.Popen(
        ['/bin/bash', script],
        cwd=self.folder,
        env=shell_environment,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
      )
      try:
        while shell.poll() is None:
          server.handle_request()
      finally:
        shell.kill()
        os.unlink(address)
    assert shell.returncode == 0, self.printed
    self._note_other_failures()

  def _script(self, pieces: Iterable[printed_commands.Piece]) -> str:
    """One script, as if all were typed into one terminal."""
    lines = [
      'set -uE',
      'export TYPED=$$ PLACE=',
      'trap \'printf "%s\\t%s\\t%s\\n" "$PLACE" "$?" "${BASH_COMMAND//$\'"\'"\''
      '\\n\'"\'"\'/ }" >>"$HOME/failed"\' ERR',
    ]
    for number, piece in enumerate(pieces):
      lines.append(f"PLACE='{piece.place}'; echo '{_MARK}{piece.place}'")
      if isinstance(piece, printed_commands.Shell):
        text = self._with_paths(piece.script)
        subprocess.run(['bash', '-n', '-c', text], check=True)
        lines.append(text)
        continue
      source = self._outside / f'file_{number}'
      source.write_text(printed_small.made_small(piece.text))
      lines.append(f'cp {source} {piece.name}')
    return '\n'.join([*lines, 'true', ''])

  def _with_paths(self, text: str) -> str:
    for folder in '/path/to', '/shared':
      text = text.replace(folder, f'{self._outside}{folder}')
    return text

  def _handler(self) -> type:
    world = self

    class Handler(socketserver.StreamRequestHandler):
      def handle(self):
        answer = world._perform(json.loads(self.rfile.readline()))
        self.wfile.write(json.dumps(answer).encode())

    return Handler

  def _perform(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Does what a stand-in was asked for."""
    program, arguments = request['program'], request['arguments']
    is_typed = request['is_typed']
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
      contextlib.chdir(request['folder']),
      _environment(
        {
          name: value.replace('gs://', self._buckets)
          for name, value in request['environment'].items()
        }
      ),
      contextlib.redirect_stdout(stdout),
      contextlib.redirect_stderr(stderr),
    ):
      try:
        if program == 'python':
          # Scripts make tables of what was not run here.
          code = _run_python(arguments) if is_typed else 0
        elif not is_typed:
          code = self._answer_script(arguments)
        else:
          code = parse(arguments) or self._run(arguments)
      except Exception:
        traceback.print_exc()
        code = 1
      finally:
        gin.clear_config()
    if is_typed and program == 'perlhf':
      self.calls.append(arguments)
    if code:
      command = ' '.join([program, *arguments])
      output = (stdout.getvalue() + stderr.getvalue())[-_SHOWN:]
      self.failures.append(Failure(request['place'], command, output))
    return {
      'code': code,
      'stdout': stdout.getvalue().replace(self._buckets, 'gs://'),
      'stderr': stderr.getvalue(),
    }

  def _run(self, arguments: Sequence[str]) -> int:
    """Runs a command, made small; the slow ones only where they differ."""
    arguments = printed_small.small(arguments)
    command = commands.COMMANDS.get(arguments[0]) if arguments else None
    can_check = command is not None and command.on_hosts
    # A benchmark compiles for a minute.
    if can_check and (self._only_check or arguments[0] == 'benchmark'):
      if '--help' not in arguments:
        arguments = [*arguments, '--check']
    elif arguments[:1] == ['sweep'] and '--help' not in arguments:
      # It starts many runs, in new processes.
      arguments = [*arguments, '--dry_run']
    elif arguments[:1] == ['plan']:  # It neither reads nor writes runs.
      planned = tuple(a for a in arguments if not a.startswith('--output='))
      if planned in _PLANNED:
        return 0
      _PLANNED.add(planned)
    return main.run(arguments)

  def _answer_script(self, arguments: Sequence[str]) -> int:
    """Checks what a launcher wants checked; parses what a script runs."""
    if '--check' in arguments:
      # Its buckets are folders here.
      return main.run([a.replace('gs://', self._buckets) for a in arguments])
    _leave_result(arguments)
    return parse(arguments)

  def _note_other_failures(self) -> None:
    """Adds the commands that the shell saw failing and we did not."""
    file = self._outside / 'failed'
    if not file.exists():
      return
    ours = {failure.place for failure in self.failures}
    printed = self.printed.split(_MARK)
    said = {text.partition('\n')[0]: text for text in printed}
    for line in file.read_text().splitlines():
      place, code, command = line.split('\t')
      if place not in ours:
        output = f'exit code {code}\n{said[place][-_SHOWN:]}'
        self.failures.append(Failure(place, command, output))
    file.unlink()

  def _write_models(self) -> None:
    """Puts tiny models where gin files are looked for first."""
    source = ROOT / 'gin' / 'models'
    for path in source.rglob('*.gin'):
      text = path.read_text('utf-8')
      for name, value in printed_small.SHAPE.items():
        text = re.sub(rf'(?m)^( *{name} = ).*$', rf'\g<1>{value!r}', text)
      text = re.sub(r'(?m)^( *vocab_size = )32128$', r'\g<1>384', text)
      copy = self.folder / 'gin' / 'models' / path.relative_to(source)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_text(text, 'utf-8')

  def _write_data(self) -> None:
    """Puts weights and data where documents say that a reader has them."""
    buckets = self._outside / 'buckets'
    for folder in (
      self._outside / 'path' / 'to',
      self._outside / 'shared',
      buckets / 'my-bucket',
      buckets / 'my-perlhf-project-runs',
    ):
      data = folder / 'data'
      data.mkdir(parents=True)
      for name in 'flan-t5-base', 'flan-t5-xl', 'model':
        (folder / name).symlink_to(_TESTS / 'golden' / 'hf_pali' / 't5')
      for source in (_TESTS / 'tasks' / 'fixtures').glob('*/*'):
        (data / source.name).symlink_to(source)

  def _write_tools(self) -> None:
    """Writes the stand-ins."""
    tools = self._outside / 'bin'
    tools.mkdir()
    for name in _CLOUDS:
      (tools / name).write_text(_CLOUD)
    for name in 'perlhf', 'python':
      text = (_TESTS / 'support' / 'printed_stand_in.py').read_text()
      (tools / name).write_text(f'#!{sys.executable} -SE\n{text}')
    for tool in tools.iterdir():
      tool.chmod(0o755)

  def _take_over(self, world: 'World') -> None:
    """Links what was trained elsewhere, under the same names."""
    (self.folder / 'runs').symlink_to(world.folder / 'runs')
    # Not `model`: the script itself says when a PaLI takes the T5's place.
    link = self._outside / 'path' / 'to' / 'pali'
    link.symlink_to(world._outside / 'path' / 'to' / 'pali')

  def _check_out(self) -> None:
    """Makes the folder look like the top of a checkout."""
    for name in 'tasks', 'perlhf_jax', 'setup.py':
      (self.folder / name).symlink_to(ROOT / name)
    for path in (ROOT / 'gin').iterdir():
      if path.name != 'models':
        (self.folder / 'gin' / path.name).symlink_to(path)
    launch = self.folder / 'launch'
    shutil.copytree(ROOT / 'launch', launch)
    for name in _LONG_SCRIPTS:
      (launch / name).write_text('#!/bin/bash\n')
    tools = self.folder / '.venv' / 'bin'
    tools.mkdir(parents=True)
    for tool in (self._outside / 'bin').iterdir():
      (tools / tool.name).symlink_to(tool)
    (tools / 'activate').touch()


def parse(arguments: Sequence[str]) -> int:
  """Reads a command line and its gin files, and nothing that they name."""
  name, *rest = arguments
  if name not in commands.COMMANDS or '--help' in rest:
    return main.run(arguments)
  command = commands.COMMANDS[name]
  try:
    command_line.parse(name, command, rest)
  except errors.UserError as error:
    print(error)
    return 2
  return 0


def _leave_result(arguments: Sequence[str]) -> None:
  """Writes what a script moves or reads after `perlhf evaluate`."""
  name, *rest = arguments
  for argument in rest if name == 'evaluate' else ():
    flag, _, value = argument.partition('=')
    if flag == '--checkpoint':
      model_dir = pathlib.Path(value.partition('/checkpoints/')[0])
      model_dir.mkdir(parents=True, exist_ok=True)
      (model_dir / 'eval.json').touch()


def _run_python(arguments: Sequence[str]) -> int:
  # Python finds modules beside a script.
  beside = [os.path.dirname(os.path.abspath(arguments[0])), *sys.path]
  # What it prints to is this process's.
  with (
    mock.patch.object(logs, 'show'),
    mock.patch.object(sys, 'path', beside),
  ):
    importlib.invalidate_caches()  # The modules may just have been written.
    runpy.run_path(arguments[0], run_name='__main__')
  return 0


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
  """Gives this process the variables of the shell for a while."""
  before = dict(os.environ)
  os.environ.update(variables)
  try:
    yield
  finally:
    os.environ.clear()
    os.environ.update(before)


@contextlib.contextmanager
def own_imports() -> Iterator[None]:
  """Forgets afterwards what the reader's own modules have brought in."""
  modules, tasks = set(sys.modules), set(seqio.TaskRegistry.names())
  formats = list(registry._formats)
  try:
    yield
  finally:
    registry._formats[:] = formats
    for name in set(sys.modules) - modules:
      if name.startswith('my_'):
        del sys.modules[name]
    for name in set(seqio.TaskRegistry.names()) - tasks:
      if name.startswith('my_'):
        seqio.TaskRegistry.remove(name)
