import math
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
  for flag in [*flags, 'no_check', 'dry_run']:
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
    ('tpu_vm', ('perlhf', 'evaluate'), "'perlhf' is not a flag"),
    (
      'tpu_vm',
      (*launch_world.SETTINGS['tpu_vm'], '--spot', '--reserved'),
      '--spot and --reserved exclude each other',
    ),
    (
      'tpu_vm',
      (
        *launch_world.SETTINGS['tpu_vm'],
        '--valid_until_duration=1h',
        '--valid_until_time=2026-12-24T18:00:00Z',
      ),
      '--valid_until_duration and --valid_until_time exclude each other',
    ),
    (
      'tpu_vm',
      (*launch_world.SETTINGS['tpu_vm'], '--num_slices=0'),
      '--num_slices=0 is not a number of slices',
    ),
    (
      'tpu_vm',
      (
        *('--name=rm', '--zone=z', '--topology=2xv5e-16'),
        *('--', *launch_world.COMMAND),
      ),
      'here write --topology=v5e-16 --num_slices=2',
    ),
    (
      'tpu_vm',
      (
        *('--name=rm', '--zone=z', '--topology=tpu7x-8'),
        *('--', *launch_world.COMMAND),
      ),
      '--topology=tpu7x-8 is rented through GKE alone',
    ),
    ('gke', ('--name=rm', '--topology=v5e-16'), '--image is missing'),
    (
      'gke',
      (*launch_world.SETTINGS['gke'], '--spot', '--reservation=r'),
      '--spot and --reservation exclude each other',
    ),
    (
      'gke',
      (
        *(*launch_world.SETTINGS['gke'], '--labels=team'),
        *('--', *launch_world.COMMAND),
      ),
      '--labels=team is not KEY=VALUE',
    ),
    (
      'gke',
      (
        *('--name=rm', '--topology=v3-32', '--image=i'),
        *('--', *launch_world.COMMAND),
      ),
      'GKE has no v3-32: launch/tpu_vm.sh',
    ),
    (
      'xpk',
      (
        *(*launch_world.SETTINGS['xpk'], '--topology=v5e-4'),
        *('--num_slices=2', '--', *launch_world.COMMAND),
      ),
      'GKE joins slices of several hosts only, and v5e-4 has one',
    ),
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
  assert '--topology=v5e-17 is not known; there are: v2-8,' in result.stderr


EXPECTED = {
  'v2': ('tpu-ubuntu2204-base', '-', '-', 2),
  'v3': ('tpu-ubuntu2204-base', '-', '-', 2),
  'v4': ('tpu-ubuntu2204-base', 'tpu-v4-podslice', 'ct4p-hightpu', 3),
  'v5e': ('v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 'ct5lp-hightpu', 2),
  'v5p': ('v2-alpha-tpuv5', 'tpu-v5p-slice', 'ct5p-hightpu', 3),
  'v6e': ('v2-alpha-tpuv6e', 'tpu-v6e-slice', 'ct6e-standard', 2),
  'tpu7x': ('-', 'tpu7x', 'tpu7x-standard', 3),
}


def test_the_rows_of_a_generation_are_alike():
  for row in launch_world.topologies():
    generation = row.name.split('-')[0]
    runtime, accelerator, machine, dimensions = EXPECTED[generation]
    if machine != '-':
      machine = f'{machine}-{row.chips}t'
    assert (row.runtime, row.accelerator, row.machine) == (
      runtime,
      accelerator,
      machine,
    )
    assert row.cloud_type == row.name.replace('v5e-', 'v5litepod-')
    assert len(row.shape.split('x')) == dimensions


def test_hosts_and_chips_make_up_the_topology():
  for row in launch_world.topologies():
    chips = math.prod(map(int, row.shape.split('x')))
    assert row.hosts * row.chips == chips
    assert row.chips == min(chips, 4)


def test_the_launchers_and_plan_know_the_same_slices():
  rows = launch_world.topologies()
  assert tuple(row.name for row in rows) == topologies.names()
  assert {'v5e-1', 'v6e-1', 'tpu7x-2', 'tpu7x-8'} <= {row.name for row in rows}


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


def _page_commands():
  """The launchers' commands in docs/pods.md, with the variables they use."""
  text = (launch_world.ROOT / 'docs' / 'pods.md').read_text()
  blocks = re.findall(r'^```sh\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  exports = [line for line in lines if line.startswith('export ')]
  pattern = r'launch/(tpu_vm|gke|xpk|slurm|ssh)\.sh '
  commands = [line for line in lines if re.match(pattern, line)]
  return '\n'.join(exports), commands


def test_the_commands_of_the_page_are_understood(world):
  exports, commands = _page_commands()
  assert {re.match(r'launch/(\w+)', line)[1] for line in commands} == {
    *launch_world.SETTINGS
  }
  for command in commands:
    script, rest = command.split(maxsplit=1)
    subprocess.run(
      ['bash', '-euc', f'{exports}\n{script} --dry_run {rest}'],
      cwd=world.checkout,
      env=world.environment,
      stdout=subprocess.DEVNULL,
      check=True,
    )
