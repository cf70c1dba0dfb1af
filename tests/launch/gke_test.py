import json
import shlex

import kubeflow_trainer_api.models
import launch_world
import pytest
import yaml


def _without_unknown_fields(manifest):
  """The manifest as the models of the JobSet API read it."""
  models = kubeflow_trainer_api.models
  return models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()


@pytest.mark.parametrize('spot', [True, False])
def test_the_manifest_is_a_jobset(world, spot):
  flags = ['--spot'] if spot else []
  manifest = world.manifest(
    *launch_world.SETTINGS['gke'], *flags, '--', *launch_world.COMMAND
  )
  assert _without_unknown_fields(manifest) == manifest


def test_the_check_of_the_manifest_sees_wrong_fields(world):
  text = json.dumps(
    world.manifest(*launch_world.SETTINGS['gke'], '--', *launch_world.COMMAND)
  )
  for field in ('backoffLimit', 'nodeSelector', 'onExitCodes', 'maxRestarts'):
    assert text.count(f'"{field}"') == 1
    wrong = json.loads(text.replace(f'"{field}"', f'"{field}s"'))
    assert _without_unknown_fields(wrong) != wrong
  with pytest.raises(ValueError, match='parallelism'):
    _without_unknown_fields(
      json.loads(text.replace('"parallelism": 4', '"parallelism": "four"'))
    )


# Of each generation the slices that differ.
SLICES = ('v4-8', 'v5e-1', 'v5e-8', 'v5p-128', 'v6e-1', 'tpu7x-2', 'tpu7x-128')


@pytest.mark.parametrize(
  'row',
  [row for row in launch_world.topologies() if row.name in SLICES],
  ids=lambda row: row.name,
)
def test_the_manifest_asks_for_every_host_of_the_slice(world, row):
  manifest = world.manifest(
    '--name=rm',
    f'--topology={row.name}',
    '--image=i',
    '--',
    *launch_world.COMMAND,
  )
  (slices,) = manifest['spec']['replicatedJobs']
  job = slices['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert (slices['replicas'], job['completionMode']) == (1, 'Indexed')
  assert job['completions'] == job['parallelism'] == row.hosts
  assert container['resources'] == {'limits': {'google.com/tpu': row.chips}}
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': row.accelerator,
    'cloud.google.com/gke-tpu-topology': row.shape,
  }


def test_several_slices_are_as_many_jobs_each_on_a_node_pool_of_its_own(world):
  manifest = world.manifest(
    *launch_world.SETTINGS['gke'],
    '--num_slices=2',
    '--reservation=ours',
    '--labels=team=rl,cost-center=12',
    '--',
    *launch_world.COMMAND,
  )
  assert _without_unknown_fields(manifest) == manifest
  labels = {'team': 'rl', 'cost-center': '12'}
  assert manifest['metadata']['labels'] == labels
  assert manifest['metadata']['annotations'] == {
    'alpha.jobset.sigs.k8s.io/exclusive-topology': (
      'cloud.google.com/gke-nodepool'
    )
  }
  (slices,) = manifest['spec']['replicatedJobs']
  assert slices['replicas'] == 2
  job = slices['template']['spec']
  assert job['completions'] == job['parallelism'] == 4
  template = job['template']
  assert template['metadata']['labels'] == labels
  selector = template['spec']['nodeSelector']
  assert selector['cloud.google.com/reservation-name'] == 'ours'
  # Checked for all of them.
  assert world.arguments('checkout')[-1] == '--topology=2xv5e-16'


def test_the_manifest_runs_the_command_untouched_on_every_host(world):
  manifest = world.manifest(
    *launch_world.SETTINGS['gke'],
    '--data_dir=gs://b/d',
    '--cache_dir=gs://b/c',
    '--',
    *launch_world.COMMAND,
  )
  (slices,) = manifest['spec']['replicatedJobs']
  (container,) = slices['template']['spec']['template']['spec']['containers']
  assert container['command'] == [
    *('python', 'launch/host_log.py', 'gs://bucket/rm/logs', 'perlhf'),
    *launch_world.MULTIHOST,
  ]
  assert container['env'] == [
    {'name': 'JAX_PLATFORMS', 'value': 'tpu,cpu'},
    {'name': 'TF_CPP_MIN_LOG_LEVEL', 'value': '3'},
    {'name': 'PERLHF_DATA_DIR', 'value': 'gs://b/d'},
    {'name': 'PERLHF_CACHE_DIR', 'value': 'gs://b/c'},
  ]
  # By it the hosts find each other.
  assert manifest['spec']['network']['enableDNSHostnames'] is True


def _outcome(manifest, exit_code, disrupted):
  """What becomes of the JobSet when a container has ended.

  By the rules of Kubernetes: the first rule that matches decides; without one
  the failed pod counts, which is more than a backoffLimit of 0 allows.
  """
  spec = manifest['spec']
  (slices,) = spec['replicatedJobs']
  job = slices['template']['spec']
  reason = 'BackoffLimitExceeded'
  assert job['backoffLimit'] == 0
  for rule in job['podFailurePolicy']['rules']:
    codes = rule.get('onExitCodes')
    if codes:
      assert codes['operator'] == 'In'
      matches = exit_code in codes['values']
    else:
      (condition,) = rule['onPodConditions']
      assert condition == {'type': 'DisruptionTarget', 'status': 'True'}
      matches = disrupted
    if matches:
      if rule['action'] == 'FailJob':
        reason = 'PodFailurePolicy'
      else:
        assert rule['action'] == 'Count'
      break
  (rule,) = spec['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet'
  return 'fail' if reason in rule['onJobFailureReasons'] else 'restart'


@pytest.mark.parametrize(
  ('exit_code', 'disrupted', 'outcome'),
  [
    (2, False, 'fail'),
    (1, False, 'fail'),
    (75, False, 'restart'),
    (75, True, 'restart'),
    (137, True, 'restart'),
    (1, True, 'restart'),
    (134, False, 'restart'),
  ],
)
def test_the_manifest_restarts_what_a_restart_can_help(
  world, exit_code, disrupted, outcome
):
  manifest = world.manifest(
    *launch_world.SETTINGS['gke'],
    '--max_restarts=7',
    '--grace_seconds=300',
    '--',
    *launch_world.COMMAND,
  )
  assert manifest['spec']['failurePolicy']['maxRestarts'] == 7
  (slices,) = manifest['spec']['replicatedJobs']
  pod = slices['template']['spec']['template']['spec']
  # Kubernetes allows a podFailurePolicy with this restart policy alone.
  assert pod['restartPolicy'] == 'Never'
  assert pod['terminationGracePeriodSeconds'] == 300
  assert _outcome(manifest, exit_code, disrupted) == outcome


def test_gke_applies_the_manifest_that_the_dry_run_shows(world):
  world.tool('kubectl', 'cat >"$WORLD/applied"')
  arguments = (
    *launch_world.SETTINGS['gke'],
    '--spot',
    '--',
    *launch_world.COMMAND,
  )
  assert world.run('gke', *arguments).returncode == 0
  assert world.calls == ['kubectl apply --filename=-']
  applied = yaml.safe_load((world.folder / 'applied').read_text())
  assert applied == world.manifest(*arguments)


def test_xpk_creates_a_workload_that_restarts_on_75(world):
  (words,) = world.dry_run(
    'xpk',
    *launch_world.SETTINGS['xpk'],
    '--num_slices=2',
    '--reservation=ours',
    '--zone=us-west4-a',
    '--project=lab',
    '--data_dir=gs://b/d',
    '--',
    *launch_world.COMMAND,
  )
  command = words.pop().removeprefix('--command=')
  assert words == [
    'xpk',
    'workload',
    'create',
    '--workload=rm',
    '--cluster=tpus',
    '--zone=us-west4-a',
    '--project=lab',
    '--tpu-type=v5litepod-16',
    '--num-slices=2',
    '--reservation=ours',
    '--docker-image=perlhf:tpu',
    '--max-restarts=100',
    '--restart-on-exit-codes=75',
    '--termination-grace-period-seconds=600',
    '--env=JAX_PLATFORMS=tpu,cpu',
    '--env=TF_CPP_MIN_LOG_LEVEL=3',
    '--env=PERLHF_DATA_DIR=gs://b/d',
  ]
  assert shlex.split(command) == [
    *('exec', 'python', 'launch/host_log.py', 'gs://bucket/rm/logs', 'perlhf'),
    *launch_world.MULTIHOST,
  ]
