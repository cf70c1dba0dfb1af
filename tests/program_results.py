"""Runs a program that needs a process of its own, and reads its results.

The number of simulated devices is settled when JAX starts.
"""

import os
import pathlib
import pickle
import subprocess
import sys

_TESTS = pathlib.Path(__file__).parent


def run(program, folder):
  """Returns what a program pickles into the file that is its argument.

  Args:
    program: path of the program, in `tests`.
    folder: where the file may lie.
  """
  path = folder / 'results.pickle'
  process = subprocess.run(
    [sys.executable, _TESTS / program, path],
    cwd=_TESTS.parent,
    capture_output=True,
    text=True,
    check=False,
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(map(str, (_TESTS.parent, _TESTS))),
    },
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return pickle.loads(path.read_bytes())
