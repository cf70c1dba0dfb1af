import os
import re
import subprocess

import launch_world
import pytest

from perlhf_jax.training import topologies


def test_shellcheck_finds_nothing():
  files = [
    *launch_world.LAUNCH.glob('*.sh'),
    *launch_world.LAUNCH.glob('*.bash'),
  ]
  result = subprocess.run(
    [launch_world.TOOLS / 'shellcheck', '--external-sources', *files],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout + result.stderr == ''


@pytest.mark.parametrize('script', launch_world.SETTINGS)
def test_help_lists_every_flag(world, script):
  text = (launch_world.LAUNCH / f'{script}.sh').read_text()
  flags = re.search(r'^flags=\(([^)]*)\)', text, re.MULTILINE)[1].split()
  result = world.run(script, '--help')
  assert (result.returncode, result.stderr) == (0, '')
  for flag in [*flags, 'dry_run']:
    assert re.search(rf'^  --{flag} ', result.stdout, re.MULTILINE), flag
  for variable in re.findall(r'\$\{(PERLHF_\w+):-', text):
    assert variable in result.stdout


@pytest.mark.parametrize('script', launch_world.SETTINGS)
def test_a_dry_run_runs_nothing_and_says_the_same_again(world, script):
  for tool in ('gcloud', 'git', 'kubectl', 'xpk', 'sbatch', 'ssh', 'mkdir'):
    world.tool(tool)
  arguments = (
    '--dry_run',
    *launch_world.SETTINGS[script],
    '--',
    *launch_world.COMMAND,
  )
  first, second = (world.run(script, *arguments) for _ in range(2))
  assert (first.returncode, first.stderr) == (0, '')
  assert first.stdout == second.stdout
  assert str(world.folder) not in first.stdout
  assert world.calls == []


@pytest.mark.parametrize('script', launch_world.SETTINGS)
def test_settings_come_from_the_environment_too(world, script):
  variables = {}
  for flag in launch_world.SETTINGS[script]:
    name, value = flag.removeprefix('--').split('=')
    variables[f'PERLHF_{name.upper()}'] = value
  assert world.dry_run(
    script, '--', *launch_world.COMMAND, **variables
  ) == world.dry_run(
    script, *launch_world.SETTINGS[script], '--', *launch_world.COMMAND
  )


@pytest.mark.parametrize(
  ('script', 'arguments', 'message'),
  [
    ('tpu_vm', (), '--name is missing (or set PERLHF_NAME)'),
    ('tpu_vm', ('--name=Rm_1',), '--name=Rm_1 is not a name'),
    ('tpu_vm', ('--name=rm',), '--zone is missing (or set PERLHF_ZONE)'),
    ('tpu_vm', ('--name=rm', '--zone'), '--zone needs a value'),
    ('tpu_vm', ('--name=rm', '--zone=z'), '--topology is missing'),
    ('tpu_vm', ('--spot=yes',), "--spot is true or false, not 'yes'"),
    ('tpu_vm', ('--sopt',), 'there is no flag --sopt'),
    ('tpu_vm', ('perlhf', 'evaluate'), "'perlhf' is no flag"),
    ('gke', ('--name=rm', '--topology=v5e-16'), '--image is missing'),
    ('xpk', ('--name=rm',), '--cluster is missing'),
    ('slurm', ('--name=rm',), '--time is missing'),
    ('ssh', (), '--hosts is missing (or set PERLHF_HOSTS)'),
    ('ssh', ('--hosts=a', '--port=http'), '--port=http is not a whole number'),
    *(
      (script, flags, 'after -- comes')
      for script, flags in launch_world.SETTINGS.items()
    ),
    *(
      (script, (*flags, '--', 'python', 'x.py'), 'after -- comes')
      for script, flags in launch_world.SETTINGS.items()
    ),
  ],
)
def test_mistakes_end_with_one_line_and_code_2(
  world, script, arguments, message
):
  result = world.run(script, *arguments)
  assert (result.returncode, result.stdout) == (2, '')
  assert result.stderr.count('\n') == 1
  assert result.stderr.startswith(f'{script}.sh: error: ')
  assert message in result.stderr


@pytest.mark.parametrize('script', ['tpu_vm', 'gke', 'xpk'])
def test_a_slice_may_have_its_name_of_cloud_tpu_too(world, script):
  arguments = ('--dry_run', *launch_world.SETTINGS[script])
  command = ('--', *launch_world.COMMAND)
  other = [flag.replace('v5e-', 'v5litepod-') for flag in arguments]
  expected = world.run(script, *arguments, *command)
  assert expected.returncode == 0
  assert world.run(script, *other, *command).stdout == expected.stdout


@pytest.mark.parametrize('script', ['tpu_vm', 'gke', 'xpk'])
def test_an_unknown_topology_is_refused_with_those_that_there_are(
  world, script
):
  arguments = [
    flag.replace('v5e-16', 'v5e-17') for flag in launch_world.SETTINGS[script]
  ]
  result = world.run(script, *arguments, '--', *launch_world.COMMAND)
  assert (result.returncode, result.stdout) == (2, '')
  assert '--topology=v5e-17 is not known; there are: v4-8,' in result.stderr


@pytest.mark.parametrize(
  'row', launch_world.topologies(), ids=lambda row: row[0]
)
def test_hosts_and_chips_make_up_the_topology(row):
  name, cloud_type, runtime, accelerator, shape, hosts, chips_a_host = row
  chips = 1
  for size in shape.split('x'):
    chips *= int(size)
  assert int(hosts) * int(chips_a_host) == chips
  generation, size = name.split('-')
  # Names of v4 and v5p count the cores, of which a chip has two.
  assert int(size) == chips * (2 if generation in ('v4', 'v5p') else 1)
  assert cloud_type == name.replace('v5e-', 'v5litepod-')
  expected = {
    'v4': ('tpu-ubuntu2204-base', 'tpu-v4-podslice', 3),
    'v5e': ('v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 2),
    'v5p': ('v2-alpha-tpuv5', 'tpu-v5p-slice', 3),
    'v6e': ('v2-alpha-tpuv6e', 'tpu-v6e-slice', 2),
  }
  assert topologies.find(name).shape == tuple(map(int, shape.split('x')))
  dimensions = len(shape.split('x'))
  assert (runtime, accelerator, dimensions) == expected[generation]


@pytest.mark.parametrize(
  ('script', 'settings', 'expected'),
  [
    (
      'tpu_vm',
      ('--zone=z',),
      'gcloud compute tpus queued-resources delete rm --zone=z --force --quiet',
    ),
    ('gke', (), 'kubectl delete jobset rm --namespace=default'),
    (
      'xpk',
      ('--cluster=c',),
      'xpk workload delete --workload=rm --cluster=c',
    ),
  ],
)
def test_delete_only_deletes(world, script, settings, expected):
  tool = expected.split()[0]
  world.tool(tool)
  result = world.run(script, '--name=rm', *settings, '--delete')
  assert result.returncode == 0
  assert world.calls == [expected]


def _readme_commands():
  """The launchers' commands in the README, with the variables they use."""
  text = (launch_world.LAUNCH / 'README.md').read_text()
  blocks = re.findall(r'^```sh\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  exports = [line for line in lines if line.startswith('export ')]
  pattern = r'launch/(tpu_vm|gke|xpk|slurm|ssh)\.sh '
  commands = [line for line in lines if re.match(pattern, line)]
  return '\n'.join(exports), commands


def test_the_commands_of_the_readme_are_understood():
  exports, commands = _readme_commands()
  assert {re.match(r'launch/(\w+)', line)[1] for line in commands} == {
    *launch_world.SETTINGS
  }
  for command in commands:
    script, rest = command.split(maxsplit=1)
    subprocess.run(
      ['bash', '-euc', f'{exports}\n{script} --dry_run {rest}'],
      cwd=launch_world.ROOT,
      env={'PATH': os.environ['PATH'], 'HOME': os.environ['HOME']},
      stdout=subprocess.DEVNULL,
      check=True,
    )
