"""What the launchers ask perlhf, before they rent anything."""

import shutil

import launch_world
import pytest

from perlhf_jax.cli import commands

ON_TPUS = ('tpu_vm', 'gke', 'xpk')
CHECKED_FOR = {
  'tpu_vm': '--topology=v5e-16',
  'gke': '--topology=v5e-16',
  'xpk': '--topology=v5e-16',
  'slurm': '--num_devices=16',
  'ssh': '--num_devices=16',
}
TOOLS = ('gcloud', 'git', 'kubectl', 'xpk', 'sbatch', 'ssh')


def _launch(world, script, *flags, command=launch_world.COMMAND):
  """Starts a launcher whose tools would note what is rented."""
  for tool in TOOLS:
    world.tool(tool, 'cat >/dev/null')
  settings = launch_world.SETTINGS[script]
  return world.run(script, *settings, *flags, '--', *command)


@pytest.mark.parametrize('script', launch_world.SETTINGS)
@pytest.mark.parametrize('mode', [(), ('--dry_run',)])
def test_the_command_is_checked_for_the_devices_that_it_will_have(
  world, script, mode
):
  nodes = ('--nodes=2',) if script == 'slurm' else ()
  world.check('exit 2')
  result = _launch(world, script, *nodes, *mode, '--data_dir=gs://b/d')
  assert result.returncode == 2
  assert world.arguments('checkout') == (
    *launch_world.COMMAND[1:],
    '--check',
    CHECKED_FOR[script],
  )
  environment = world.checkout / 'environment'
  assert environment.read_text() == 'cpu gs://b/d\n'


@pytest.mark.parametrize('script', launch_world.SETTINGS)
@pytest.mark.parametrize('code', [1, 2])
def test_nothing_is_rented_for_a_command_that_does_not_pass(
  world, script, code
):
  world.check(f'echo "perlhf: error: no task my_rm" >&2; exit {code}')
  result = _launch(world, script)
  assert result.returncode == 2
  assert 'perlhf: error: no task my_rm\n' in result.stderr
  assert 'nothing was started: the command did not pass' in result.stderr
  assert f'(exit code {code}; --no_check' in result.stderr
  assert world.calls == []


def test_what_the_check_finds_is_shown(world):
  world.check('echo "fits: 3 of 16 GiB"; echo "writes: gs://bucket/rm"')
  result = _launch(world, 'gke', '--dry_run')
  assert '# fits: 3 of 16 GiB\n' in result.stdout
  assert '# checked by: JAX_PLATFORMS=cpu ' in result.stdout


@pytest.mark.parametrize('script', launch_world.SETTINGS)
@pytest.mark.parametrize(
  'name',
  [
    *(name for name, each in commands.COMMANDS.items() if not each.on_hosts),
    'train_rewrad',
  ],
)
def test_a_command_that_is_none_for_hosts_is_refused(world, script, name):
  result = _launch(world, script, '--no_check', command=('perlhf', name))
  assert (result.returncode, result.stdout) == (2, '')
  on_hosts = [name for name, each in commands.COMMANDS.items() if each.on_hosts]
  assert (
    f'perlhf {name} does not run on hosts; these commands do: '
    f'{" ".join(on_hosts)}\n'
  ) in result.stderr
  assert world.calls == []


@pytest.mark.parametrize('script', launch_world.SETTINGS)
def test_without_an_environment_it_says_how_to_make_one(world, script):
  shutil.rmtree(world.checkout / '.venv')
  result = _launch(world, script, '--dry_run')
  assert (result.returncode, result.stdout) == (2, '')
  assert 'run launch/setup_venv.sh, or give --no_check' in result.stderr
  assert _launch(world, script, '--dry_run', '--no_check').returncode == 0


@pytest.mark.parametrize('script', ON_TPUS)
def test_results_that_would_be_deleted_with_the_slice_are_refused(
  world, script
):
  world.check('echo "writes: gs://bucket/rm"; echo "writes: runs/rm"')
  result = _launch(world, script)
  assert result.returncode == 2
  assert (
    f'{script}.sh: error: the command writes to runs/rm, on a disk that is '
    'deleted with its host: write to a bucket, gs://...'
  ) in result.stderr
  assert world.calls == []


@pytest.mark.parametrize('script', ON_TPUS)
def test_what_the_hosts_would_not_find_is_refused(world, script):
  world.check('echo "reads: gs://bucket/data"; echo "reads: runs/sft"')
  result = _launch(world, script)
  assert result.returncode == 2
  assert (
    f'{script}.sh: error: the command reads runs/sft, which is on this machine '
    'and not on the hosts: copy it into a bucket'
  ) in result.stderr
  assert world.calls == []


@pytest.mark.parametrize(
  ('flags', 'code'),
  [
    (('--topology=v5e-4', '--keep'), 0),
    (('--topology=v5e-1', '--keep'), 0),
    (('--topology=v5e-4',), 2),
    (('--topology=v5e-4', '--keep', '--spot'), 2),
    (('--topology=v5e-16', '--keep'), 2),
    (('--topology=v5e-4', '--keep', '--num_slices=2'), 2),
  ],
)
def test_only_the_disk_of_a_kept_host_may_hold_results(world, flags, code):
  world.check('echo "writes: runs/rm"')
  result = _launch(world, 'tpu_vm', '--dry_run', *flags)
  assert result.returncode == code
  if code:
    assert '(or --keep a slice of one host that is not --spot)' in result.stderr


@pytest.mark.parametrize('script', ['slurm', 'ssh'])
def test_machines_that_stay_may_hold_results(world, script):
  world.check('echo "reads: /shared/d"; echo "writes: /shared/runs/rm"')
  assert _launch(world, script, '--dry_run').returncode == 0


@pytest.mark.parametrize(
  'words',
  [
    ('train_sft', "--gin.MODEL_DIR='runs/sft'"),
    ('train_sft', '--gin.MODEL_DIR= "runs/sft"'),
    ('score', '--checkpoint=gs://b/rm', '--output=scores.jsonl'),
    ('benchmark', "--gin.OUTPUT='figures.json'"),
    ('evaluate', '--checkpoint=runs/rm'),
  ],
)
def test_unchecked_commands_do_not_lose_their_results_either(world, words):
  result = _launch(world, 'gke', '--no_check', command=('perlhf', *words))
  assert result.returncode == 2
  assert 'on a disk that is deleted with its host' in result.stderr
  assert world.calls == []
  in_bucket = [
    word.replace('runs/', 'gs://b/')
    .replace('scores', 'gs://b/scores')
    .replace('figures', 'gs://b/figures')
    for word in words
  ]
  result = _launch(world, 'gke', '--no_check', command=('perlhf', *in_bucket))
  assert result.returncode == 0
  assert 'gke.sh: the command is not checked' in result.stderr


@pytest.mark.parametrize(
  ('written', 'flags', 'log_dir'),
  [
    ('gs://bucket/rm', (), 'gs://bucket/rm/logs'),
    ('gs://bucket/rm/', (), 'gs://bucket/rm/logs'),
    ('gs://bucket/v1.5', (), 'gs://bucket/v1.5/logs'),
    ('gs://bucket/out/scores.jsonl', (), 'gs://bucket/out/logs'),
    ('gs://b/rm/checkpoints/best/eval.json', (), 'gs://b/rm/logs'),
    ('gs://bucket/rm', ('--log_dir=gs://logs/7',), 'gs://logs/7'),
  ],
)
def test_output_is_kept_with_the_results(world, written, flags, log_dir):
  world.check(f'echo "writes: {written}"')
  manifest = world.manifest(
    *launch_world.SETTINGS['gke'], *flags, '--', *launch_world.COMMAND
  )
  (slices,) = manifest['spec']['replicatedJobs']
  (container,) = slices['template']['spec']['template']['spec']['containers']
  assert container['command'][:4] == [
    *('python', 'launch/host_log.py', log_dir, 'perlhf')
  ]


def test_output_is_kept_in_a_bucket_only(world):
  result = _launch(world, 'tpu_vm', '--log_dir=logs')
  assert result.returncode == 2
  assert '--log_dir=logs is not in a bucket, gs://...' in result.stderr


def test_a_command_that_writes_nothing_has_no_place_for_its_output(world):
  world.check('true')
  manifest = world.manifest(
    *launch_world.SETTINGS['gke'], '--', *launch_world.COMMAND
  )
  (slices,) = manifest['spec']['replicatedJobs']
  (container,) = slices['template']['spec']['template']['spec']['containers']
  assert container['command'] == ['perlhf', *launch_world.MULTIHOST]
