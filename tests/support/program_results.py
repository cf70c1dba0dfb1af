"""Runs a program that needs a process of its own, and reads its results.

The number of simulated devices is settled when JAX first uses one.
"""

import pathlib
import pickle

import starting

_TESTS = pathlib.Path(__file__).parents[1]
_LONGEST = 600


def run(preloaded, program, folder):
  """Returns what a program pickles into the file that is its argument.

  Args:
    preloaded: starts the program.
    program: its path, in `tests`.
    folder: where the file may lie.
  """
  path = folder / 'results.pickle'
  outcome = preloaded.start(
    [path], starting.ROOT, program=_TESTS / program
  ).wait(_LONGEST)
  assert outcome.code == 0, outcome.err[-3000:]
  return pickle.loads(path.read_bytes())
