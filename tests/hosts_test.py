"""The command line of one of several processes; others start them."""

import hosts_program
import pytest

from perlhf_jax.cli import command_line
from perlhf_jax.cli import commands
from perlhf_jax.cli import main

WAIT = hosts_program.COMMANDS['wait']
GIVEN = ('wait', '--folder=a')


def _error(capsys, *argv):
  assert main.run(argv, hosts_program.COMMANDS) == 2
  err = capsys.readouterr().err
  assert err.startswith('perlhf: error: ')
  return err


def test_help_lists_the_flags(capsys):
  assert main.run(['wait', '--help'], hosts_program.COMMANDS) == 0
  page = capsys.readouterr().out
  own, section = page.split('On several hosts, the same command on each, with:')
  for name in 'multihost', 'coordinator_address', 'num_processes', 'process_id':
    assert f'  --{name} ' in section
    assert name not in own
  assert 'counts as lost (default 100)' in ' '.join(section.split())
  assert 'False' not in section


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_commands_that_run_models_take_the_flags(name, capsys):
  assert main.run([name, '--help']) == 0
  runs_models = name not in (
    'average',
    'benchmark_input',
    'convert',
    'inspect',
    'plan',
    'report',
    'sweep',
    'tasks',
    'train_vocabulary',
  )
  assert ('--multihost' in capsys.readouterr().out) == runs_models


def test_other_commands_do_not(capsys):
  assert main.run(['tasks', '--multihost']) == 2
  assert 'perlhf tasks has no flag --multihost' in capsys.readouterr().err


def test_flags_are_read():
  parsed = command_line.parse(
    'wait', WAIT, ['--folder=a', '--process_id=0', '--heartbeat_timeout=7']
  )
  assert parsed.hosts == {
    'multihost': False,
    'coordinator_address': None,
    'num_processes': None,
    'process_id': 0,
    'connect_timeout': 300,
    'heartbeat_timeout': 7,
  }
  assert 'process_id' not in parsed.keywords


@pytest.mark.parametrize('args', [[], ['--multihost=false'], ['--nomultihost']])
def test_a_process_without_others(args):
  assert command_line.parse('wait', WAIT, ['--folder=a', *args]).hosts is None


@pytest.mark.parametrize(
  ('args', 'names'),
  [
    (['train', '--process_id=0'], True),
    (['train', '-multihost'], True),
    (['train', '--num_processes', '2'], True),
    (['train', '--gin.process_id=0', '--checkpoint=--multihost'], False),
  ],
)
def test_flags_are_recognised_before_they_are_read(args, names):
  assert command_line.names_hosts(args) == names


@pytest.mark.parametrize('flag', ['--process_id=-1', '--num_processes=0'])
def test_bad_number(capsys, flag):
  message = _error(capsys, *GIVEN, flag)
  assert flag.removeprefix('--').partition('=')[0] in message


def test_some_of_the_flags(capsys):
  message = _error(capsys, *GIVEN, '--num_processes=2')
  assert '--num_processes needs --coordinator_address, --process_id' in message
  assert 'on Cloud TPU, GKE or SLURM give --multihost alone' in message


def test_both_ways_at_once(capsys):
  message = _error(capsys, *GIVEN, '--multihost', '--num_processes=2')
  assert '--multihost finds the other hosts' in message
