"""Commands that are started in a folder of somebody else's run none of it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / 'tests' / 'golden' / 'hf_t5_v1_1'
MARK = """
import os, pathlib
pathlib.Path(os.environ['MARKS'], 'ran').open('a').write(__file__ + '\\n')
"""
# What libraries try to import, what Python does, and names of Python's own.
FILES = (
  'cv2.py',
  'google/__init__.py',
  'jax_plugins/__init__.py',
  'jax_plugins/x.py',
  'libtpu.py',
  'pandas.py',
  'random.py',
  'sitecustomize.py',
  'tasks.py',
  'tensorflow_text.py',
  'torch.py',
  'usercustomize.py',
)
GIN = 'from __gin__ import dynamic_registration\nimport evil\n'
TASKS = """
import my_parsing
from perlhf_jax.data import preference_tasks

preference_tasks.add_preference_task(
  'mine', 'sft', my_parsing.parse, files='x.jsonl'
)
try:
  import seqio.torch
except ImportError:
  pass
"""


@pytest.fixture
def folder(tmp_path):
  """A model with code beside it, and a file that says what of it has run."""
  folder = tmp_path / 'foreign'
  shutil.copytree(MODEL, folder)
  for name in (*FILES, 'evil.py', 'my_parsing.py'):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(MARK)
  (folder / 'gin' / 'runs').mkdir(parents=True)
  for path in (ROOT / 'gin' / 'runs').glob('*.gin'):
    (folder / 'gin' / 'runs' / path.name).write_text(GIN)
  # As if something were installed there that is a plugin of JAX.
  (folder / 'evil-1.0.dist-info').mkdir()
  (folder / 'evil-1.0.dist-info' / 'METADATA').write_text(
    'Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n'
  )
  (folder / 'evil-1.0.dist-info' / 'entry_points.txt').write_text(
    '[jax_plugins]\nevil = evil\n'
  )
  (folder / 'my_parsing.py').write_text('parse = dict\n')
  (folder / 'my_tasks.py').write_text(TASKS)
  lines = folder / 'lines.jsonl'
  lines.write_text(json.dumps({'prompt': 'a', 'response': 'b'}) + '\n')
  return folder


def run(folder, *args, start=None):
  """Runs a command in the folder as the installed script does."""
  script = folder.parent / 'bin' / 'perlhf'
  script.parent.mkdir(exist_ok=True)
  script.write_text('from perlhf_jax.cli.main import cli\ncli()\n')
  result = subprocess.run(
    [sys.executable, *(start or [script]), *args],
    cwd=folder,
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'MARKS': str(folder.parent),
      'PERLHF_START_CACHE': 'off',
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
    check=False,
  )
  marks = folder.parent / 'ran'
  return result, marks.read_text() if marks.exists() else ''


@pytest.mark.parametrize(
  ('name', 'args'),
  [
    ('inspect', ('--checkpoint=.',)),
    (
      'score',
      ('--checkpoint=.', '--input=lines.jsonl', '--output=scores.jsonl'),
    ),
    ('tasks', ()),
  ],
)
def test_no_file_of_the_folder_runs(folder, name, args):
  result, ran = run(folder, name, *args)
  assert result.returncode == 0, result.stderr
  assert not ran


def test_the_run_file_of_a_command_is_ours(folder):
  result, ran = run(
    folder,
    'plan',
    '--gin_file=gin/models/t5_tiny.gin',
    '--gin_file=gin/rl/reinforce.gin',
    '--topology=v9x-4',
  )
  assert result.returncode == 2
  assert 'v9x-4' in result.stderr
  assert not ran


def test_a_module_that_is_named_is_found_with_what_it_imports(folder):
  result, ran = run(folder, 'tasks', '--module=my_tasks')
  assert result.returncode == 0, result.stderr
  assert 'mine' in result.stdout
  assert not ran


def test_python_m_runs_no_file_of_the_folder_either(folder):
  result, ran = run(folder, 'tasks', start=['-m', 'perlhf_jax'])
  assert result.returncode == 0, result.stderr
  assert 'demo_sft' in result.stdout
  assert not ran


def test_these_files_would_run_if_the_folder_were_on_the_path(folder):
  _, ran = run(
    folder, start=['-c', 'import cv2, pandas, libtpu, jax_plugins.x']
  )
  assert 'libtpu.py' in ran and 'x.py' in ran
