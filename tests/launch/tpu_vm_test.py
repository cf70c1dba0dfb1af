import re
import shlex

import launch_world
import pytest


def test_tpu_vm_creates_installs_runs_and_deletes(world):
  commands = world.dry_run(
    'tpu_vm',
    *launch_world.SETTINGS['tpu_vm'],
    '--project=lab',
    '--spot',
    '--service_account=perlhf@lab.iam.gserviceaccount.com',
    '--data_dir=gs://bucket/data',
    '--',
    *launch_world.COMMAND,
  )
  where = ['--zone=us-west4-a', '--project=lab']
  tpus = ['gcloud', 'compute', 'tpus']
  everywhere = ['--node=all', '--worker=all', '--batch-size=all']
  on_all = [*tpus, 'queued-resources', 'ssh', 'rm', *where, *everywhere]
  install, run = commands[5].pop(), commands[6].pop()
  assert commands == [
    [
      *[*tpus, 'queued-resources', 'create', 'rm', *where],
      '--accelerator-type=v5litepod-16',
      '--runtime-version=v2-alpha-tpuv5-lite',
      '--node-id=rm',
      '--service-account=perlhf@lab.iam.gserviceaccount.com',
      '--spot',
    ],
    [
      *[*tpus, 'queued-resources', 'describe', 'rm', *where],
      '--format=value(state.state)',
    ],
    ['mkdir', '-p', 'build'],
    [
      *['git', 'archive', '--format=tar.gz'],
      *['--output=build/perlhf_jax.tar.gz', 'HEAD'],
    ],
    [
      *[*tpus, 'queued-resources', 'scp', 'build/perlhf_jax.tar.gz', 'rm:'],
      *[*where, *everywhere],
    ],
    [*on_all, '--ssh-flag=-oServerAliveInterval=30'],
    [*on_all, '--ssh-flag=-oServerAliveInterval=30'],
    [
      *[*tpus, 'queued-resources', 'delete', 'rm', *where],
      *['--force', '--quiet'],
    ],
  ]
  assert install.startswith('--command=mkdir -p perlhf_jax && tar -xzf ')
  assert install.endswith(' perlhf_jax/launch/setup_venv.sh tpu')
  words = shlex.split(run.removeprefix('--command='))
  program = words.index('.venv/bin/perlhf')
  assert words[words.index('env') : program] == [
    'env',
    'JAX_PLATFORMS=tpu,cpu',
    'TF_CPP_MIN_LOG_LEVEL=3',
    'PERLHF_DATA_DIR=gs://bucket/data',
    '.venv/bin/python',
    'launch/host_log.py',
    'gs://bucket/rm/logs',
  ]
  assert words[program + 1 : -1] == [
    *launch_world.MULTIHOST[:-1],
    '--multihost;',
  ]


def test_tpu_vm_on_demand_and_kept_is_neither_spot_nor_deleted(world):
  commands = world.dry_run(
    'tpu_vm',
    *launch_world.SETTINGS['tpu_vm'],
    '--keep',
    '--',
    *launch_world.COMMAND,
  )
  assert '--spot' not in commands[0]
  assert not any('delete' in command for command in commands)


def test_tpu_vm_asks_for_what_its_flags_say(world):
  flags = [
    '--network=lab',
    '--subnetwork=lab-west',
    '--internal-ips',
    '--labels=team=rl,run=7',
    '--reserved',
    '--valid-until-duration=12h',
  ]
  commands = world.dry_run(
    'tpu_vm',
    *launch_world.SETTINGS['tpu_vm'],
    *flags,
    '--',
    *launch_world.COMMAND,
  )
  create = commands[0]
  assert create[create.index('--node-id=rm') + 1 :] == flags
  reaching = [c for c in commands if 'ssh' in c or 'scp' in c]
  assert len(reaching) == 3
  for command in commands:
    assert ('--internal-ip' in command) == (command in reaching)


def test_tpu_vm_asks_for_several_slices_at_once(world):
  commands = world.dry_run(
    'tpu_vm',
    *launch_world.SETTINGS['tpu_vm'],
    '--num-slices=2',
    '--valid_until_time=2026-12-24T18:00:00Z',
    '--',
    *launch_world.COMMAND,
  )
  assert commands[0][-3:] == [
    '--node-count=2',
    '--node-prefix=rm',
    '--valid-until-time=2026-12-24T18:00:00Z',
  ]
  assert not any('--node-id' in word for word in commands[0])
  assert world.arguments('checkout')[-1] == '--topology=2xv5e-16'


# The queued resource, as gcloud sees it, and what the hosts' command ends with.
GCLOUD = """
case "$*" in
  *" describe "*)
    state="$(next states)"
    [ "$state" != NONE ] && echo "$state"
    ;;
  *flock*) exit "$(next codes)" ;;
esac
"""


def _steps(calls):
  """The calls of gcloud in short, without the looks at the state."""
  steps = []
  for call in calls:
    if 'run.lock' in call:
      steps.append('run')
    elif match := re.search(r' (create|delete|scp) |setup_venv', call):
      steps.append(match[1] or 'install')
  return steps


FRESH = ['create', 'scp', 'install', 'run']
AGAIN = ['scp', 'install', 'run']


@pytest.mark.parametrize(
  ('states', 'codes', 'steps', 'code'),
  [
    pytest.param(
      ['NONE', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'],
      ['0'],
      [*FRESH, 'delete'],
      0,
      id='finished',
    ),
    pytest.param(['ACTIVE'], ['0'], [*AGAIN, 'delete'], 0, id='slice exists'),
    pytest.param(
      ['NONE', 'ACTIVE'],
      ['75', '0'],
      [*FRESH, *AGAIN, 'delete'],
      0,
      id='saved and stopped',
    ),
    pytest.param(
      ['NONE', 'ACTIVE', 'SUSPENDING', 'SUSPENDED', 'NONE', 'ACTIVE'],
      ['255', '0'],
      [*FRESH, 'delete', *FRESH, 'delete'],
      0,
      id='preempted, connections lost',
    ),
    pytest.param(
      ['NONE', 'ACTIVE', 'SUSPENDED', 'NONE', 'ACTIVE'],
      ['75', '0'],
      [*FRESH, 'delete', *FRESH, 'delete'],
      0,
      id='preempted, saved',
    ),
    pytest.param(
      ['NONE', 'ACTIVE'], ['2', '0'], [*FRESH, 'delete'], 2, id='mistake'
    ),
    pytest.param(
      ['NONE', 'ACTIVE'], ['1', '0'], [*FRESH, 'delete'], 1, id='fault'
    ),
    pytest.param(
      ['NONE', 'ACTIVE'],
      ['75'],
      [*FRESH, *AGAIN, *AGAIN, 'delete'],
      75,
      id='restarts used up',
    ),
  ],
)
def test_tpu_vm_restarts_what_a_restart_can_help(
  world, states, codes, steps, code
):
  world.tool('gcloud', GCLOUD)
  world.tool('git')
  world.answers('states', *states)
  world.answers('codes', *codes)
  result = world.run(
    'tpu_vm',
    *launch_world.SETTINGS['tpu_vm'],
    '--poll_seconds=0',
    '--max_restarts=2',
    '--',
    *launch_world.COMMAND,
  )
  assert _steps(world.calls) == steps
  assert result.returncode == code
  assert f'ended with exit code {code}' in result.stderr
  assert 'a slice may still be there' not in result.stderr


def test_tpu_vm_says_how_to_delete_a_slice_that_it_leaves(world):
  world.tool('gcloud', GCLOUD)
  world.tool('git')
  world.answers('states', 'ACTIVE')
  world.answers('codes', '2')
  result = world.run(
    'tpu_vm',
    *launch_world.SETTINGS['tpu_vm'],
    '--keep',
    '--poll_seconds=0',
    '--',
    *launch_world.COMMAND,
  )
  assert (result.returncode, _steps(world.calls)) == (2, AGAIN)
  assert (
    'launch/tpu_vm.sh --name=rm --zone=us-west4-a --delete' in result.stderr
  )


def test_tpu_vm_ends_where_the_request_has_failed(world):
  world.tool('gcloud', GCLOUD)
  world.answers('states', 'FAILED')
  result = world.run(
    'tpu_vm', *launch_world.SETTINGS['tpu_vm'], '--', *launch_world.COMMAND
  )
  assert (result.returncode, _steps(world.calls)) == (2, [])
  assert (
    'this says why: gcloud compute tpus queued-resources describe rm'
    in result.stderr
  )


def test_tpu_vm_hands_the_command_to_the_hosts_untouched(world):
  world.host('perlhf_jax')
  # As ssh does, the stand-in gives the command to the user's shell.
  world.tool(
    'gcloud',
    'case "$*" in *" describe "*) echo ACTIVE ;; *flock*) line="${@: -1}";'
    ' cd "$WORLD" && bash -c "${line#--command=}" ;; esac',
  )
  world.tool('git')
  result = world.run(
    'tpu_vm',
    *launch_world.SETTINGS['tpu_vm'],
    '--data_dir=gs://b/d',
    '--',
    *launch_world.COMMAND,
  )
  assert result.returncode == 0
  assert world.arguments('perlhf_jax') == launch_world.MULTIHOST
  environment = world.folder / 'perlhf_jax' / 'environment'
  assert environment.read_text() == 'tpu,cpu gs://b/d\n'
