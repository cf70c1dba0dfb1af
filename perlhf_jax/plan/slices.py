"""Plans settings on slices, and finds the largest batch or smallest slice."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from absl import logging

from perlhf_jax.core import errors
from perlhf_jax.core import sigterm
from perlhf_jax.plan import compiling
from perlhf_jax.plan import programs as programs_lib
from perlhf_jax.plan import rows as rows_lib
from perlhf_jax.plan import search as search_lib
from perlhf_jax.training import partitioning
from perlhf_jax.training import topologies

# A slice, and the setting to run on it.
Placed = tuple[topologies.Topology, programs_lib.Setting]


class Planner:
  """Compiles settings for slices, each program once."""

  def __init__(
    self,
    partitioner: partitioning.Partitioner,
    options: Mapping[str, Any],
    rows: rows_lib.Rows | None = None,
  ):
    """Makes a planner.

    Args:
      partitioner: how to shard models and batches.
      options: the compiler options.
      rows: existing rows; new rows are added to them.
    """
    self._partitioner = partitioner
    self._options = options
    self._meshes: dict[topologies.Topology, partitioning.LogicalMesh] = {}
    self._rows = rows_lib.Rows() if rows is None else rows

  def mesh(self, topology: topologies.Topology) -> partitioning.LogicalMesh:
    """Returns the mesh of a slice.

    Raises:
      ConfigError: the slice does not have as many devices as the mesh, or
        libtpu is missing.
    """
    if topology not in self._meshes:
      with sigterm.kept():
        devices = topologies.devices(topology)
      self._meshes[topology] = self._partitioner.make_mesh(devices)
    return self._meshes[topology]

  def rows(self, several: Sequence[Placed]) -> Iterator[compiling.Row]:
    """Yields the rows of settings as soon as they are compiled.

    Args:
      several: the settings; the rows of one program for all settings come
        together.
    """
    programs = [
      programs_lib.make_programs(setting, self.mesh(topology))
      for topology, setting in several
    ]
    for of_each in zip(*programs, strict=True):
      for placed, program in zip(several, of_each, strict=True):
        yield self._row(placed, program)

  def fits(self, placed: Placed) -> bool:
    """Returns whether all programs fit; stops at the first that does not."""
    topology, setting = placed
    programs = programs_lib.make_programs(setting, self.mesh(topology))
    # Starts with the last program, the update, which most often does not fit.
    for program in reversed(list(programs)):
      if (
        # Not even the arguments and waiting weights fit.
        program.resident_bytes > topology.memory_bytes
        or not self._row(placed, program)['fits']
      ):
        logging.info('%s does not fit: %s.', program.name, _describe(placed))
        return False
    logging.info('All programs fit: %s.', _describe(placed))
    return True

  def with_largest_batch(self, placed: Placed) -> Placed:
    """Returns a setting with the largest batch for which all programs fit.

    If no batch fits, returns the setting with the smallest batch.
    """
    topology, setting = placed

    def sized(size):
      return topology, dataclasses.replace(setting, batch_size=size)

    step = setting.batch_multiple(self.mesh(topology))
    largest = search_lib.largest(lambda size: self.fits(sized(size)), step)
    return sized(largest or step)

  def on_smallest_slice(
    self, family: Sequence[topologies.Topology], setting: programs_lib.Setting
  ) -> Placed:
    """Returns a setting on the first slice on which all programs fit.

    If none fits, returns the largest slice that divides the batch.

    Args:
      family: slices of a generation, the smallest first.
      setting: the setting.

    Raises:
      ConfigError: no slice divides the batch.
    """
    possible = [each for each in family if self._takes(each, setting)]
    if not possible:
      setting.check_batch_size(self.mesh(family[0]))
    for topology in possible:
      if self.fits((topology, setting)):
        return topology, setting
    return possible[-1], setting

  def _takes(self, topology, setting) -> bool:
    try:
      setting.check_batch_size(self.mesh(topology))
    except errors.ConfigError:
      return False
    return True

  def _row(self, placed, program) -> compiling.Row:
    topology, setting = placed
    key = (topology.name, setting.tuning, setting.batch_size, program.name)
    row = self._rows.get(key)
    if row is None:
      logging.info('Compiling %s: %s.', program.name, _describe(placed))
      row = compiling.compile_program(
        program, topology.memory_bytes, self._options
      )
      row = self._rows.add(
        {
          'program': row.pop('program'),
          'tuning': setting.tuning,
          'topology': topology.name,
          'batch_size': setting.batch_size,
          **row,
        }
      )
    return row


def _describe(placed: Placed) -> str:
  topology, setting = placed
  return f'{setting.tuning}, batch of {setting.batch_size}, {topology.name}'
