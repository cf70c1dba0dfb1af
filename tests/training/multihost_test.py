"""Two processes on this machine: how they agree, and how they end."""

import json
import os
import re
import signal
import socket
import time

import hosts_program
import jax
import pytest

from perlhf_jax.core import errors
from perlhf_jax.training import multihost

_HOST = re.escape(socket.gethostname())


@pytest.fixture(scope='module')
def agreed(tmp_path_factory):
  """What two processes raised, and what they printed."""
  folder = tmp_path_factory.mktemp('agree')
  codes, errs = hosts_program.Pair('agree', f'--folder={folder}').end()
  assert codes == [0, 0], errs
  raised = [
    json.loads((folder / f'raised_{index}.json').read_text())
    for index in range(2)
  ]
  return folder, raised, errs


def test_nothing_is_raised_if_all_is_well(agreed):
  for raised in agreed[1]:
    for name in 'no error', 'same', 'shared':
      assert raised[name] is None


def test_the_error_of_one_process_is_raised_by_all(agreed):
  first, second = (raised['error of 1'] for raised in agreed[1])
  assert second == ['DataError', 'line 3', True]
  assert first[0] == 'DataError' and first[2]
  assert re.fullmatch(rf'process 1 \({_HOST}\) stopped: line 3', first[1])


def test_every_process_keeps_its_own_error(agreed):
  for index, raised in enumerate(agreed[1]):
    assert raised['error of both'] == ['DataError', f'line {index}', True]


def test_processes_that_differ_are_told_where(agreed):
  first, second = (raised['different'] for raised in agreed[1])
  assert first == second
  assert first[0] == 'ConfigError' and first[2]
  assert re.match(
    rf'the processes disagree on the configuration\. .* process 0 '
    rf'\({_HOST}\): process 1 \({_HOST}\)\.\n'
    '  process 0: rank = 8\n  process 1: rank = 9\n',
    first[1],
  )
  assert 'alpha' not in first[1]


def test_model_dir_has_to_be_shared(agreed):
  folder, (first, second), _ = agreed
  assert second['not shared'][0] == 'CheckpointError'
  assert (
    'is not the folder in which process 0 writes' in second['not shared'][1]
  )
  assert first['not shared'][1].startswith('process 1 (')
  assert not list((folder / 'shared').iterdir())
  assert not list((folder / '0').iterdir())


def test_model_dir_has_to_be_writable_for_process_0(agreed):
  for raised in agreed[1]:
    assert 'cannot be written to' in raised['not writable'][1]


def test_sigterm_keeps_its_meaning_outside_of_training(agreed):
  assert all(raised['sigterm'] for raised in agreed[1])


def test_other_processes_print_warnings_only(agreed):
  first, second = agreed[2]
  assert 'an info line' in first and 'an info line' not in second
  assert re.search(r'^\d\d:\d\d:\d\d WARNING: a warning$', first, re.M)
  assert re.search(r'^\[1\] \d\d:\d\d:\d\d WARNING: a warning$', second, re.M)


def test_commands_that_differ_do_not_start(tmp_path):
  folder = f'--folder={tmp_path}'
  codes, errs = hosts_program.Pair(
    'agree', folder, differing=(['--number=1'], ['--number=2'])
  ).end()
  assert codes == [2, 2]
  for err in errs:
    assert 'perlhf: error: the processes disagree on the command' in err
    assert '  process 0: number: 1\n  process 1: number: 2\n' in err
  assert not list(tmp_path.iterdir())


def _without_traces(err):
  return [line for line in err.splitlines() if line.startswith('perlhf: ')]


@pytest.mark.parametrize('process', [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, process):
  start = time.monotonic()
  codes, errs = hosts_program.Pair(
    'lose', f'--folder={tmp_path}', f'--number={process}'
  ).end()
  assert time.monotonic() - start < 60
  assert codes[process] == 128 + signal.SIGKILL
  assert codes[1 - process] == 75
  (line,) = _without_traces(errs[1 - process])
  assert 'another process of this run was lost' in line
  assert 'the same command again' in line

  # Started again, they go on.
  codes, errs = hosts_program.Pair(
    'lose', f'--folder={tmp_path}', '--number=3'
  ).end()
  assert codes == [0, 0], errs
  records = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in records if 'loss' in line] == [
    *range(1, hosts_program.STEPS + 1)
  ]


def test_a_process_that_halts_ends_the_other(tmp_path):
  pair = hosts_program.Pair(
    'lose', f'--folder={tmp_path}', '--number=2', '--heartbeat_timeout=5'
  )
  first, second = pair.processes
  line = ''
  while not line.startswith('pid '):
    line = second.stderr.readline()
    assert line
  start = time.monotonic()
  try:
    err = first.communicate(timeout=60)[1]
  finally:
    os.kill(int(line.split()[1]), signal.SIGKILL)
    pair.end()
  assert time.monotonic() - start < 30
  assert first.returncode == 75
  (line,) = _without_traces(err)
  assert 'another process of this run was lost' in line


@pytest.mark.parametrize(
  ('number', 'code', 'message'),
  [(1, 2, 'perlhf: error: a bad row'), (2, 1, 'ValueError: our fault')],
)
def test_a_mistake_of_one_process_ends_the_other(
  tmp_path, number, code, message
):
  codes, errs = hosts_program.Pair(
    'misuse', f'--folder={tmp_path}', f'--number={number}'
  ).end(timeout=60)
  assert codes == [75, code]
  assert message in errs[1]


def test_processes_that_do_not_come_are_waited_for_in_vain(tmp_path):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    port = taken.getsockname()[1]
    flags = [
      'wait',
      f'--folder={tmp_path}',
      f'--coordinator_address=127.0.0.1:{port}',
      '--num_processes=2',
      '--connect_timeout=1',
    ]
    # Nobody listens there.
    lonely = hosts_program.start(*flags, '--process_id=1')
    taken.listen()
    refused = hosts_program.start(*flags, '--process_id=0')
    err = refused.communicate(timeout=60)[1]
    assert refused.returncode == 2
    assert f'cannot listen at --coordinator_address=127.0.0.1:{port}' in err
    assert 'Give another port' in err
    assert 'Traceback' not in err
    err = lonely.communicate(timeout=60)[1]
  assert lonely.returncode == 75
  (line,) = _without_traces(err)
  assert 'process 1 did not reach all of --num_processes=2' in line
  assert 'within --connect_timeout=1 seconds' in line


def test_sigterm_ends_a_process_that_is_not_training(tmp_path):
  process = hosts_program.start(
    'wait',
    f'--folder={tmp_path}',
    '--number=60',
    f'--coordinator_address=127.0.0.1:{_free_port()}',
    '--num_processes=1',
    '--process_id=0',
  )
  while not (tmp_path / 'waiting').exists():
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.05)
  process.terminate()
  err = process.communicate(timeout=20)[1]
  # On which launchers start again.
  assert process.returncode == 75
  assert err.splitlines()[-1].startswith('perlhf: stopped by SIGTERM. ')


def test_no_cluster_in_the_environment(tmp_path, monkeypatch):
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'KUBERNETES_', 'OMPI_', 'JAX_COORD')):
      monkeypatch.delenv(name)
  process = hosts_program.start('wait', f'--folder={tmp_path}', '--multihost')
  err = process.communicate(timeout=60)[1]
  assert process.returncode == 2
  assert '--multihost found no cluster in the environment' in err
  assert '--coordinator_address=HOST:PORT' in err
  assert 'Traceback' not in err


def _free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'multihost': True, 'process_id': 0}, '--process_id also names them'),
    (
      {'coordinator_address': 'a:1', 'process_id': 0},
      '--coordinator_address, --process_id needs --num_processes',
    ),
    ({'num_processes': 2}, 'needs --coordinator_address, --process_id'),
    ({}, 'a run on several hosts needs --coordinator_address'),
    (
      {'coordinator_address': 'a', 'num_processes': 2, 'process_id': 0},
      '--coordinator_address=a is not HOST:PORT',
    ),
    (
      {'coordinator_address': 'a:70000', 'num_processes': 2, 'process_id': 0},
      '--coordinator_address=a:70000 is not HOST:PORT',
    ),
    (
      {'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 2},
      '--process_id=2 does not fit --num_processes=2',
    ),
  ],
)
def test_flags_that_do_not_fit_together(given, message):
  with pytest.raises(errors.ConfigError) as error:
    multihost.initialize(**given)
  assert message in str(error.value)
  assert not jax.distributed.is_initialized()


def test_a_single_process_agrees_with_itself():
  assert multihost.is_alone()
  multihost.check_same('anything', 'the text')
  multihost.raise_together(None)
  error = errors.DataError('line 3')
  with pytest.raises(errors.DataError) as raised:
    multihost.raise_together(error)
  assert raised.value is error


def test_an_error_of_a_single_process_is_no_lost_host():
  assert multihost.lost_host(ValueError('Gloo all-reduce failed')) is None


@pytest.mark.parametrize(
  ('error', 'is_lost'),
  [
    (ValueError('UNKNOWN: Gloo all-reduce failed: closed'), True),
    (jax.errors.JaxRuntimeError('UNAVAILABLE: Task 1 is gone'), True),
    (
      jax.errors.JaxRuntimeError(
        'INTERNAL: NCCL operation failed: remote process exited'
      ),
      True,
    ),
    (jax.errors.JaxRuntimeError('INTERNAL: a wrong program'), False),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: memory'), False),
    (ValueError('UNAVAILABLE'), False),
  ],
)
def test_lost_hosts_are_told_from_faults(monkeypatch, error, is_lost):
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  message = multihost.lost_host(error)
  assert (message is not None) == is_lost
  if is_lost:
    assert 'the same command again' in message
    wrapped = RuntimeError('while saving')
    wrapped.__cause__ = error
    assert multihost.lost_host(wrapped) == message
