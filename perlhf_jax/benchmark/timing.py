"""Times the programs of several tunings in turn."""

from collections.abc import Callable, Mapping, Sequence
import statistics
import time
from typing import Any, NamedTuple, Protocol, runtime_checkable

from absl import logging
import jax

# The number of the repeat -> arrays. The same number gives the same samples.
Call = Callable[[int], Any]


class Timing(NamedTuple):
  """A timed call: its seconds, and what it returned."""

  seconds: float
  result: Any


@runtime_checkable
class Programs(Protocol):
  """The programs of a tuning."""

  def calls(self) -> Mapping[str, Call]:
    """Returns what is to be timed; the names are those of every tuning."""
    ...

  def figures(self, timings: Mapping[str, Sequence[Timing]]) -> dict[str, Any]:
    """Returns the figures that come of the timings of all calls."""
    ...


def measure(
  programs: Mapping[str, Programs], repeats: int
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Times the calls of all tunings in turn.

  What disturbs a machine for a while then disturbs all of them.

  Args:
    programs: by tuning.
    repeats: timed calls of each, after one that is not timed and compiles.

  Returns:
    Figures by tuning, and the seconds of every call by tuning and name.
  """
  calls = {tuning: each.calls() for tuning, each in programs.items()}
  names = list(next(iter(calls.values())))
  for tuning, by_name in calls.items():
    logging.info('%s: compiling %s.', tuning, ', '.join(names))
    for name in names:
      jax.block_until_ready(by_name[name](0))
  timings = {tuning: {name: [] for name in names} for tuning in calls}
  for repeat in range(1, repeats + 1):
    for name in names:
      for tuning, by_name in calls.items():
        start = time.perf_counter()
        result = jax.block_until_ready(by_name[name](repeat))
        seconds = time.perf_counter() - start
        timings[tuning][name].append(Timing(seconds, result))
    logging.info('Repeat %d of %d is done.', repeat, repeats)
  figures = {t: each.figures(timings[t]) for t, each in programs.items()}
  seconds = {
    tuning: {name: [t.seconds for t in runs] for name, runs in by_name.items()}
    for tuning, by_name in timings.items()
  }
  return figures, seconds


def median_seconds(timings: Sequence[Timing]) -> float:
  """Returns the median of the seconds."""
  return statistics.median(timing.seconds for timing in timings)
