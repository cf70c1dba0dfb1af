import shutil
import signal
import time

import launch_world
import pytest


def test_slurm_submits_a_process_a_gpu_and_a_signal_before_the_limit(world):
  (words,) = world.dry_run(
    'slurm',
    *launch_world.SETTINGS['slurm'],
    '--nodes=2',
    '--gpus_per_node=4',
    '--',
    *launch_world.COMMAND,
  )
  words.pop()
  assert words == [
    'sbatch',
    '--job-name=rm',
    '--nodes=2',
    '--ntasks-per-node=4',
    '--gpus-per-node=4',
    '--time=1:00:00',
    '--signal=TERM@600',
    '--requeue',
    '--open-mode=append',
    '--output=rm-%j.log',
    '--chdir=/shared/perlhf_jax',
  ]


@pytest.mark.parametrize(
  ('code', 'restarts', 'requeued'),
  [(0, '', False), (2, '', False), (75, '', True), (75, '100', False)],
)
def test_a_slurm_job_is_queued_again_on_75(world, code, restarts, requeued):
  world.host('node')
  world.tool(
    'sbatch',
    'line="${@: -1}"; cd "$WORLD/node" && SLURM_JOB_ID=12'
    f' SLURM_RESTART_COUNT={restarts} sh -c "${{line#--wrap=}}"',
  )
  world.tool('srun', f'shift; "$@"; exit {code}')
  world.tool('scontrol')
  result = world.run(
    'slurm', *launch_world.SETTINGS['slurm'], '--', *launch_world.COMMAND
  )
  assert result.returncode == code
  assert world.arguments('node') == launch_world.MULTIHOST
  environment = world.folder / 'node' / 'environment'
  assert environment.read_text() == 'cuda,cpu \n'
  assert ('scontrol requeue 12' in world.calls) == requeued


# Runs the command in a folder of the host's name, as the user's home.
SSH = 'cd "$WORLD/${@: -2:1}" && bash -c "${@: -1}"'


def _hosts(world, *hosts):
  world.tool('ssh', SSH)
  for host in hosts:
    world.host(f'{host}/perlhf_jax')


def test_ssh_starts_one_process_on_each_host(world):
  _hosts(world, 'node1', 'me@node2')
  result = world.run(
    'ssh',
    '--hosts=node1,me@node2',
    '--data_dir=/d',
    '--',
    *launch_world.COMMAND,
  )
  assert result.returncode == 0
  for index, host in enumerate(('node1', 'me@node2')):
    assert world.arguments(f'{host}/perlhf_jax') == (
      *launch_world.COMMAND[1:],
      '--coordinator_address=node1:8476',
      '--num_processes=2',
      f'--process_id={index}',
    )
    environment = world.folder / host / 'perlhf_jax' / 'environment'
    assert environment.read_text() == 'cuda,cpu /d\n'


@pytest.mark.parametrize(
  ('codes1', 'codes2', 'starts', 'code'),
  [
    (['0'], ['0'], 1, 0),
    (['75', '0'], ['75', '0'], 2, 0),
    (['75', '0'], ['255', '0'], 2, 0),
    (['75'], ['2'], 1, 2),
    (['1'], ['75'], 1, 1),
    (['75'], ['75'], 3, 75),
  ],
)
def test_ssh_restarts_what_a_restart_can_help(
  world, codes1, codes2, starts, code
):
  world.tool('ssh', 'exit "$(next "${@: -2:1}")"')
  world.answers('node1', *codes1)
  world.answers('node2', *codes2)
  result = world.run(
    'ssh',
    *launch_world.SETTINGS['ssh'],
    '--poll_seconds=0',
    '--max_restarts=2',
    '--',
    *launch_world.COMMAND,
  )
  assert result.returncode == code
  assert len(world.calls) == 2 * starts


def _wait_for(path):
  for _ in range(1000):
    if path.exists():
      return
    time.sleep(0.01)
  raise TimeoutError(path)


# Saves on SIGTERM, not on the SIGHUP that comes with it, then ends with 75.
LONG_RUN = """
trap 'touch "$WORLD/saved"; exit 75' TERM
touch "$WORLD/running"
while true; do sleep 0.05; done
"""


@pytest.mark.skipif(not shutil.which('fuser'), reason='needs fuser')
def test_ssh_makes_all_hosts_save_when_it_is_stopped(world):
  _hosts(world, 'node')
  world.perlhf('node/perlhf_jax', LONG_RUN)
  process = world.start('ssh', '--hosts=node', '--', *launch_world.COMMAND)
  _wait_for(world.folder / 'running')
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 75
  assert (world.folder / 'saved').exists()


@pytest.mark.skipif(not shutil.which('fuser'), reason='needs fuser')
def test_a_run_whose_connection_was_lost_saves_before_the_next_starts(world):
  _hosts(world, 'node')
  world.perlhf('node/perlhf_jax', LONG_RUN)
  lost = world.start(
    'ssh', '--hosts=node', '--max_restarts=0', '--', *launch_world.COMMAND
  )
  _wait_for(world.folder / 'running')
  world.perlhf('node/perlhf_jax', 'test -e "$WORLD/saved"')
  assert (
    world.run('ssh', '--hosts=node', '--', *launch_world.COMMAND).returncode
    == 0
  )
  lost.communicate(timeout=60)
  assert lost.returncode == 75
