"""What an sdist and a wheel hold, and that a command runs from them alone."""

import ast
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _python(*arguments, folder, **environment):
  result = subprocess.run(
    [sys.executable, *arguments],
    cwd=folder,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


def _tracked(*folders):
  """The files that a clone has."""
  try:
    listing = subprocess.run(
      ['git', 'ls-files', '--', *folders],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    ).stdout
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('this is no clone')
  return {name for name in listing.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope='module', name='sdist')
def _sdist(tmp_path_factory):
  """The unpacked sdist."""
  folder = tmp_path_factory.mktemp('sdist')
  _python(
    *('setup.py', '-q', 'egg_info', '--egg-base', folder),
    *('sdist', '--dist-dir', folder),
    folder=ROOT,
  )
  (archive,) = folder.glob('*.tar.gz')
  with tarfile.open(archive) as tar:
    tar.extractall(folder, filter='data')
  return folder / archive.name.removesuffix('.tar.gz')


@pytest.fixture(scope='module', name='installed')
def _installed(sdist):
  """What a wheel puts into site-packages, from the sdist alone."""
  _python('setup.py', '-q', 'build', '--build-lib', 'installed', folder=sdist)
  return sdist / 'installed'


def test_the_sdist_holds_what_a_clone_does(sdist):
  files = {
    path.relative_to(sdist).as_posix()
    for path in sdist.glob('**/*')
    if path.is_file()
  }
  missing = _tracked() - files
  assert not missing
  made = {name for name in files - _tracked() if '.egg-info/' not in name}
  # The tests may run before their files are committed.
  untracked = {name for name in made if (ROOT / name).exists()}
  assert made - untracked <= {'PKG-INFO', 'setup.cfg'}


def test_the_wheel_holds_code_gin_files_and_tasks(installed):
  files = {
    path.relative_to(installed).as_posix()
    for path in installed.glob('**/*')
    if path.is_file()
  }
  code = _tracked('perlhf_jax', 'tasks')
  gin = {f'perlhf_jax/{name}' for name in _tracked('gin')}
  assert code | gin <= files
  assert not {name for name in files if name.startswith(('tests', 'launch'))}


def test_a_command_runs_from_what_is_installed(installed, tmp_path):
  """The command checks a run of the demo: gin files, task and model."""
  where = {'PYTHONPATH': str(installed), 'PERLHF_START_CACHE': 'off'}
  code = (
    'import perlhf_jax, tasks; print([perlhf_jax.__file__, tasks.__file__])'
  )
  for file in ast.literal_eval(_python('-c', code, folder=tmp_path, **where)):
    assert pathlib.Path(file).is_relative_to(installed)
  printed = _python(
    *('-m', 'perlhf_jax', 'train_reward', '--check'),
    '--gin_file=gin/models/t5_tiny.gin',
    '--gin_file=gin/lora/none.gin',
    '--gin_file=gin/demo/world.gin',
    "--gin.MIXTURE_OR_TASK_NAME='demo_rm'",
    '--gin.INITIAL_CHECKPOINT_PATH=None',
    "--gin.MODEL_DIR='reward'",
    '--gin.TRAIN_STEPS=2',
    folder=tmp_path,
    **where,
  )
  assert 'demo_rm' in printed
