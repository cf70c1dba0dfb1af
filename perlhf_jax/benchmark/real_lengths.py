"""The training step of a reward model on consecutive batches of a task."""

from collections.abc import Iterable, Mapping
import statistics
from typing import Any, Protocol, runtime_checkable

from absl import logging

from perlhf_jax.benchmark import batch_sizes
from perlhf_jax.benchmark import machine as machine_lib
from perlhf_jax.benchmark import timing
from perlhf_jax.core import typing
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# Batches per log line.
_LOG_PERIOD = 5


@runtime_checkable
class Trains(Protocol):
  """Trains a reward model: `reward.RewardPrograms`."""

  @property
  def memory_bytes(self) -> int:
    """The memory per device of the largest program so far."""
    ...

  def train(self, batch: typing.Batch) -> Mapping[str, Any]:
    """Makes a step with a batch on the mesh; returns its metrics."""
    ...


def measure(
  programs: Mapping[str, Trains],
  batches: Iterable[typing.Batch],
  mesh: partitioning.LogicalMesh,
  machine: machine_lib.Machine,
) -> dict[str, Any]:
  """Times the steps of all tunings in turn, with each batch once.

  First compiles the programs of all shapes. The time includes putting a batch
  on the device, as in training.

  Args:
    programs: the programs by tuning; their weights change.
    batches: batches on the host.
    mesh: where to put them.
    machine: the rates of this machine.

  Returns:
    By tuning: the rates over all batches, their `examples_per_second_median`,
    `seconds` (median per batch), `flops`, `matmul_share`, `step_memory_bytes`,
    and the numbers of `batches` and of their `shapes`.
  """
  batches = list(batches)
  keys = [_shape(batch) for batch in batches]
  first = {key: batch for key, batch in zip(keys, batches, strict=True)}
  logging.info('Compiling the step for %d batch shapes.', len(first))
  costs = {
    tuning: {
      key: timing.first_call(
        lambda t=tuning, b=batch: programs[t].train(
          placement.put_batch(b, mesh)
        )
      )
      for key, batch in first.items()
    }
    for tuning in programs
  }
  seconds = {tuning: [] for tuning in programs}
  for number, batch in enumerate(batches, start=1):
    for tuning, each in programs.items():
      done = timing.timed(
        lambda p=each, b=batch: p.train(placement.put_batch(b, mesh))
      )
      seconds[tuning].append(done.seconds)
    if number % _LOG_PERIOD == 0 or number == len(batches):
      logging.info('Batch %d of %d of the task is done.', number, len(batches))
  rows = [len(batch['example_mask']) for batch in batches]
  tokens, places = (
    sum(counts) for counts in zip(*map(batch_sizes.count, batches), strict=True)
  )
  figures = {}
  for tuning, taken in seconds.items():
    flops = sum(costs[tuning][key].flops for key in keys)
    figures[tuning] = {
      'seconds': statistics.median(taken),
      **batch_sizes.rates(sum(rows), tokens, places, sum(taken)),
      'examples_per_second_median': statistics.median(
        count / each for count, each in zip(rows, taken, strict=True)
      ),
      'flops': flops / len(batches),
      'matmul_share': machine.matmul_share(flops, sum(taken)),
      'step_memory_bytes': programs[tuning].memory_bytes,
      'batches': len(batches),
      'shapes': len(first),
    }
  return figures


def _shape(batch: typing.Batch) -> tuple[Any, ...]:
  return tuple(sorted((name, x.shape) for name, x in batch.items()))
