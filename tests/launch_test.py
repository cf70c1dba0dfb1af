import os
import pathlib
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / 'launch'


@pytest.mark.parametrize('script', sorted(LAUNCH.glob('*.sh')), ids=str)
def test_scripts_are_executable_and_parse(script):
  assert os.access(script, os.X_OK)
  subprocess.run(['bash', '-n', script], check=True)


@pytest.fixture(name='checkout')
def _checkout(tmp_path):
  """A checkout with nothing to install."""
  (tmp_path / 'launch').mkdir()
  shutil.copy(LAUNCH / 'setup_venv.sh', tmp_path / 'launch')
  (tmp_path / 'setup.py').touch()
  (tmp_path / 'constraints.txt').touch()
  return tmp_path.resolve()


def _set_up(checkout, **environment):
  return subprocess.run(
    [checkout / 'launch' / 'setup_venv.sh'],
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )


def _fake_python(checkout, version):
  python = checkout / f'python-{version}'
  python.write_text(
    '#!/bin/sh\n'
    f'[ "$1" = -c ] && echo "$2" | grep -q print && echo {version}\n'
    f'[ {version} != 3.9 ]\n'
  )
  python.chmod(0o755)
  return str(python)


def test_old_python_is_refused(checkout):
  result = _set_up(checkout, PYTHON=_fake_python(checkout, '3.9'))
  assert result.returncode == 1
  assert 'is not a Python 3.11 or newer' in result.stderr
  assert not (checkout / '.venv').exists()


def test_an_environment_of_the_users_own_is_left_alone(checkout):
  (checkout / '.venv').mkdir()
  (checkout / '.venv' / 'precious').touch()
  result = _set_up(checkout)
  assert result.returncode == 1
  assert 'was not made by this script' in result.stderr
  assert (checkout / '.venv' / 'precious').exists()


@pytest.mark.parametrize('root', ['here', 'elsewhere'])
def test_a_half_made_or_moved_environment_is_made_anew(checkout, root):
  venv = checkout / '.venv'
  venv.mkdir()
  if root == 'here':
    (venv / 'perlhf_started').write_text(f'{checkout}\n3.12\n')
  else:
    (venv / 'perlhf_started').write_text('/elsewhere\n3.12\n')
    (venv / 'perlhf_finished').touch()
  (venv / 'leftover').touch()
  # This Python makes no environment, so that pip cannot be run.
  result = _set_up(checkout, PYTHON=_fake_python(checkout, '3.12'))
  assert 'Removing .venv' in result.stderr
  assert result.returncode == 1
  assert not (venv / 'leftover').exists()
  assert not (venv / 'perlhf_finished').exists()
  assert (venv / 'perlhf_started').read_text() == f'{checkout}\n3.12\n'


def test_a_finished_environment_is_reused(checkout):
  venv = checkout / '.venv'
  venv.mkdir()
  (venv / 'perlhf_started').write_text(f'{checkout}\n3.12\n')
  stamp = subprocess.run(
    ['cksum'], input='', capture_output=True, text=True, check=True
  ).stdout
  (venv / 'perlhf_finished').write_text(stamp + 'test\n')
  result = _set_up(checkout)
  assert (result.returncode, result.stderr) == (0, '')
  # A change of what is to be installed is noticed (there is no pip here).
  (checkout / 'constraints.txt').write_text('jax==0\n')
  result = _set_up(checkout)
  assert 'Installing into .venv' in result.stderr
  assert result.returncode == 1
  assert not (venv / 'perlhf_finished').exists()
