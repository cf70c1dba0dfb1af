"""Rounds of measured batches, which `compare.py` asks a worker for.

A worker is a process that holds one rival. It prepares itself, says so in a
line of JSON on its standard output, and then measures a round for each line
that it reads. Nothing here needs any library, so that all rivals can use it.
"""

from collections.abc import Callable, Sequence
import ctypes
import itertools
import json
import random
import sys
import time
from typing import Any


def stratified(
  costs: Sequence[int], per_round: int, num_rounds: int, seed: int = 0
) -> list[list[int]]:
  """Draws the batches of each round so that all rounds are alike.

  The batches of an epoch are sorted by cost and cut into as many strata as a
  round has batches; each round takes one of each. So a round of few batches
  holds long and short ones as the epoch does.

  Args:
    costs: of each batch of an epoch.
    per_round: batches of a round.
    num_rounds: rounds.
    seed: of the draw.

  Returns:
    The numbers of the batches of each round, in a random order.
  """
  rng = random.Random(seed)
  order = sorted(range(len(costs)), key=lambda i: costs[i])
  ends = [len(order) * i // per_round for i in range(per_round + 1)]
  strata = []
  for first, last in itertools.pairwise(ends):
    stratum = order[first:last]
    rng.shuffle(stratum)
    strata.append(stratum)
  rounds = [[s[i % len(s)] for s in strata] for i in range(num_rounds)]
  for each in rounds:
    rng.shuffle(each)
  return rounds


def serve(measure: Callable[[int], dict[str, Any]], **setting: Any) -> None:
  """Says that the worker is ready, and measures a round for each line read.

  Args:
    measure: from the number of a round to its figures.
    **setting: what the worker says of itself.
  """
  _give_memory_back()
  print(json.dumps({'ready': setting}), flush=True)
  for line in sys.stdin:
    figures = measure(int(line))
    _give_memory_back()
    print(json.dumps(figures), flush=True)


def _give_memory_back() -> None:
  """Leaves to the others what this process has freed."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).malloc_trim(0)


def timed_steps(
  step: Callable[[int], None], batches: Sequence[int], **totals: Any
) -> dict[str, Any]:
  """Runs the batches of a round.

  Args:
    step: makes the batch of this number and trains on it; returns when done.
    batches: of the round.
    **totals: what the batches hold in all, such as their examples.

  Returns:
    `totals`, `seconds`, and `cpu_seconds` of all threads, which tell more
    than the clock on a machine that others use too.
  """
  start, cpu = time.perf_counter(), time.process_time()
  for batch in batches:
    step(batch)
  return {
    **totals,
    'seconds': time.perf_counter() - start,
    'cpu_seconds': time.process_time() - cpu,
  }
