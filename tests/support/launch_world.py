"""A world for the launchers, without any of the clouds and clusters.

Their tools (gcloud, kubectl, ...) are replaced by small scripts that note how
they were called and answer from a list, so that restarts can be followed.
"""

import dataclasses
import pathlib
import shlex
import shutil
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'
TOPOLOGIES = ROOT / 'perlhf_jax' / 'training' / 'tpu_topologies.txt'
TOOLS = pathlib.Path(sys.executable).parent

# Every shell on the way must hand these on untouched.
COMMAND = (
  'perlhf',
  'train_reward',
  '--gin_file=gin/models/t5_tiny.gin',
  "--gin.MODEL_DIR='gs://bucket/rm'",
  '--gin.NOTE=\'a "b" $HOME `c` \\ d!\'',
  '--gin.EMPTY=',
)
MULTIHOST = (*COMMAND[1:], '--multihost')

# What each launcher needs at least.
SETTINGS = {
  'tpu_vm': ('--name=rm', '--topology=v5e-16', '--zone=us-west4-a'),
  'gke': ('--name=rm', '--topology=v5e-16', '--image=perlhf:tpu'),
  'xpk': (
    '--name=rm',
    '--cluster=tpus',
    '--topology=v5e-16',
    '--image=perlhf:tpu',
  ),
  'slurm': ('--name=rm', '--time=1:00:00', '--directory=/shared/perlhf_jax'),
  'ssh': ('--hosts=node1,node2',),
}


class World:
  """A folder with the launchers and stand-ins for the tools that they call."""

  def __init__(self, folder):
    self.folder = folder
    self.bin = folder / 'bin'
    self.bin.mkdir()
    self.calls_file = folder / 'calls'
    self.checkout = folder / 'checkout'
    shutil.copytree(LAUNCH, self.checkout / 'launch')
    table = self.checkout / TOPOLOGIES.relative_to(ROOT)
    table.parent.mkdir(parents=True)
    shutil.copy(TOPOLOGIES, table)
    self.check('echo "writes: gs://bucket/rm"')
    self.environment = {
      'PATH': f'{self.bin}:/usr/bin:/bin',
      'HOME': str(folder),
      'WORLD': str(folder),
    }

  def tool(self, name, body=''):
    """Adds a tool that notes its call and runs the lines of `body`."""
    path = self.bin / name
    path.write_text(
      f'#!/bin/bash\nprintf \'%s\\n\' "{name} $*" >>"$WORLD/calls"\n'
      'next() { line="$(head -n 1 "$WORLD/$1")";'
      ' [ "$(wc -l <"$WORLD/$1")" -le 1 ] || sed -i 1d "$WORLD/$1";'
      f' echo "$line"; }}\n{body}\n'
    )
    path.chmod(0o755)

  def answers(self, name, *answers):
    """What `next NAME` says in a tool, one after another, the last for ever."""
    (self.folder / name).write_text('\n'.join(answers) + '\n')

  def host(self, name):
    """A checkout on a host, whose perlhf notes how it was called."""
    scripts = self.folder / name / '.venv' / 'bin'
    scripts.mkdir(parents=True)
    # Instead of what keeps the output, which has a test of its own.
    (scripts / 'python').write_text('#!/bin/bash\nshift 2\n"$@"\n')
    (scripts / 'python').chmod(0o755)
    self.perlhf(
      name,
      f'echo "$JAX_PLATFORMS $PERLHF_DATA_DIR" >"$WORLD/{name}/environment"\n'
      f'printf \'%s\\0\' "$@" >"$WORLD/{name}/arguments"',
    )

  def check(self, body):
    """What perlhf says in the checkout, where the launchers have it check."""
    (self.checkout / '.venv' / 'bin').mkdir(parents=True, exist_ok=True)
    self.perlhf(
      'checkout',
      'echo "$JAX_PLATFORMS $PERLHF_DATA_DIR" >"$WORLD/checkout/environment"\n'
      f'printf \'%s\\0\' "$@" >"$WORLD/checkout/arguments"\n{body}',
    )

  def perlhf(self, name, body):
    path = self.folder / name / '.venv' / 'bin' / 'perlhf'
    # Another file, for a shell goes on to read the one that it runs.
    path.unlink(missing_ok=True)
    path.write_text(f'#!/bin/bash\n{body}\n')
    path.chmod(0o755)

  def arguments(self, name):
    text = (self.folder / name / 'arguments').read_text()
    return tuple(text.split('\0')[:-1])

  def start(self, script, *arguments, **environment):
    return subprocess.Popen(
      [self.checkout / 'launch' / f'{script}.sh', *arguments],
      env={**self.environment, **environment},
      cwd=self.folder,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, script, *arguments, **environment):
    process = self.start(script, *arguments, **environment)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(
      process.args, process.returncode, stdout, stderr
    )

  def dry_run(self, script, *arguments, **environment):
    """The commands that it would run, as lists of words."""
    result = self.run(script, '--dry_run', *arguments, **environment)
    assert (result.returncode, result.stderr) == (0, '')
    return [
      shlex.split(line)
      for line in result.stdout.splitlines()
      if not line.startswith('#')
    ]

  def manifest(self, *arguments):
    result = self.run('gke', '--dry_run', *arguments)
    assert (result.returncode, result.stderr) == (0, '')
    first, *lines, last = [
      line for line in result.stdout.splitlines() if not line.startswith('#')
    ]
    assert first == "kubectl apply --filename=- <<'YAML'"
    assert last == 'YAML'
    return yaml.safe_load('\n'.join(lines))

  @property
  def calls(self):
    if not self.calls_file.exists():
      return []
    return self.calls_file.read_text().splitlines()


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table of slices."""

  name: str
  cloud_type: str
  runtime: str
  accelerator: str
  machine: str
  shape: str
  hosts: int
  chips: int


def topologies():
  """The rows of the table."""
  lines = TOPOLOGIES.read_text().splitlines()
  rows = [line.split() for line in lines if not line.startswith('#')]
  return [Row(*row[:-2], *map(int, row[-2:])) for row in rows]
