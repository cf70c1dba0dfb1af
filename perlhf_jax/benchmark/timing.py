"""Times the programs of several tunings in turn."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import statistics
import time
from typing import Any, NamedTuple, Protocol, runtime_checkable

from absl import logging
import jax

from perlhf_jax.benchmark import costs as costs_lib
from perlhf_jax.benchmark import machine as machine_lib
from perlhf_jax.training import compiled_step

# Number of the repeat -> arrays. The same number gives the same samples.
Call = Callable[[int], Any]


class Timing(NamedTuple):
  """A timed call: its seconds and its result."""

  seconds: float
  result: Any


@dataclasses.dataclass(frozen=True)
class Measured:
  """The measurements of a program.

  Attributes:
    timings: the timing of each call.
    cost: the cost of one call.
    machine: the rates of the machine.
  """

  timings: Sequence[Timing]
  cost: costs_lib.Cost
  machine: machine_lib.Machine

  @property
  def seconds(self) -> float:
    """The median time of a call."""
    return statistics.median(timing.seconds for timing in self.timings)

  def rates(self, turns: float = 0.0) -> dict[str, float]:
    """Returns the FLOPs, and their rate as a share of the machine's.

    Args:
      turns: turns of loops whose number of turns is only known at run time.
    """
    flops = self.cost.total_flops(turns)
    return {
      'flops': flops,
      'matmul_share': self.machine.matmul_share(flops, self.seconds),
    }


@runtime_checkable
class Programs(Protocol):
  """The programs of a tuning."""

  def calls(self) -> Mapping[str, Call]:
    """Returns the calls to time; the names are the same for every tuning."""
    ...

  def figures(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Returns results from the measurements of all calls."""
    ...


def measure(
  programs: Mapping[str, Programs],
  repeats: int,
  machine: machine_lib.Machine,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Times the calls of all tunings in turn.

  So a disturbance of the machine affects all tunings alike.

  Args:
    programs: the programs by tuning.
    repeats: timed calls of each, after one untimed call that compiles.
    machine: the rates of this machine.

  Returns:
    Results by tuning, and the seconds of every call by tuning and name.
  """
  calls = {tuning: each.calls() for tuning, each in programs.items()}
  names = list(next(iter(calls.values())))
  costs = {tuning: {} for tuning in calls}
  for tuning, by_name in calls.items():
    logging.info('%s: compiling %s.', tuning, ', '.join(names))
    for name in names:
      costs[tuning][name] = first_call(functools.partial(by_name[name], 0))
  timings = {tuning: {name: [] for name in names} for tuning in calls}
  for repeat in range(1, repeats + 1):
    for name in names:
      for tuning, by_name in calls.items():
        timings[tuning][name].append(
          timed(functools.partial(by_name[name], repeat))
        )
    logging.info('Repeat %d of %d is done.', repeat, repeats)
  figures = {
    tuning: each.figures(
      {
        name: Measured(runs, costs[tuning][name], machine)
        for name, runs in timings[tuning].items()
      }
    )
    for tuning, each in programs.items()
  }
  seconds = {
    tuning: {name: [t.seconds for t in runs] for name, runs in by_name.items()}
    for tuning, by_name in timings.items()
  }
  return figures, seconds


def first_call(call: Callable[[], Any]) -> costs_lib.Cost:
  """Makes a call, which compiles, and returns the cost of its programs."""
  costs = [costs_lib.Cost()]
  with compiled_step.watch(
    lambda traced: costs.append(costs_lib.count(traced))
  ):
    jax.block_until_ready(call())
  return sum(costs[1:], costs[0])


def timed(call: Callable[[], Any]) -> Timing:
  """Makes a call, and waits for its result."""
  start = time.perf_counter()
  result = jax.block_until_ready(call())
  return Timing(time.perf_counter() - start, result)
