"""Slices of Cloud TPU by their usual names, as the compiler knows them.

libtpu compiles for slices that are not there. It calls them by generation and
shape, `v5e:4x4`, and knows none of the names by which they are rented.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import importlib.util
import math
import os

import jax
from jax.experimental import topologies

from perlhf_jax.core import errors

# Of a process that only compiles. Without them libtpu looks for a TPU, warns
# that there is none, and lets one process a machine use it.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class _Generation:
  """What the slices of a generation have in common.

  Attributes:
    compiler_name: libtpu's.
    shapes: of the slices, in chips, the smallest first.
    counted_per_chip: what the number in a name counts: chips, or 2 cores each.
    devices_per_chip: devices that JAX sees.
    memory_gib: what libtpu lets a program use of a device's memory.
    chip_config_name: libtpu's, where its default is not how chips are rented.
  """

  compiler_name: str
  shapes: str
  counted_per_chip: int
  devices_per_chip: int
  memory_gib: float
  chip_config_name: str | None = None


_PLANES = '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
_CUBES = '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16'

# The limits are those that libtpu 0.0.42 names when a program is too large.
_GENERATIONS: Mapping[str, _Generation] = {
  'v2': _Generation('v2', '2x2 4x4 8x8 8x16 16x16', 2, 2, 7.48),
  'v3': _Generation(
    'v3', '2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32', 2, 2, 15.48
  ),
  'v4': _Generation('v4', _CUBES, 2, 1, 30.75, 'megacore'),
  'v5e': _Generation('v5e', _PLANES, 1, 1, 15.75),
  'v5p': _Generation('v5', f'{_CUBES} 16x16x16 16x16x24', 2, 1, 95.74),
  'v6e': _Generation('v6e', _PLANES, 1, 1, 31.25),
  'tpu7x': _Generation('tpu7x', f'{_CUBES} 16x16x16', 2, 2, 94.75),
}
_ALIASES = {'v5litepod': 'v5e', 'v7x': 'tpu7x'}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice.

  Attributes:
    name: as Cloud TPU calls it, such as `v5e-16`.
    generation: such as `v5e`.
    shape: chips along each axis.
    num_devices: devices that JAX sees.
    memory_bytes: what a program may use of a device.
    chip_config_name: libtpu's; None for its default.
  """

  name: str
  generation: str
  shape: tuple[int, ...]
  num_devices: int
  memory_bytes: int
  chip_config_name: str | None

  @property
  def compiler_name(self) -> str:
    """The name that libtpu knows."""
    generation = _GENERATIONS[self.generation].compiler_name
    return f'{generation}:{"x".join(map(str, self.shape))}'

  @property
  def chips_per_host_bounds(self) -> tuple[int, int, int]:
    """The chips of a host along each axis."""
    return (1, 1, 1) if math.prod(self.shape) == 1 else (2, 2, 1)

  @property
  def wrap(self) -> tuple[bool, bool, bool] | None:
    """Which axes are rings; None for libtpu's default."""
    is_torus = len(self.shape) == 3 and all(n % 4 == 0 for n in self.shape)
    return (True, True, True) if is_torus else None


def names(generation: str | None = None) -> tuple[str, ...]:
  """Returns the names of all slices, or of those of a generation."""
  return tuple(
    topology.name
    for topology in _TOPOLOGIES.values()
    if generation in (None, topology.generation)
  )


def find(name: str) -> Topology:
  """Finds a slice by name.

  Args:
    name: as Cloud TPU calls it; `v5litepod-16` is `v5e-16`.

  Raises:
    ConfigError: there is none of that name.
  """
  canonical = _canonical(name)
  if canonical in _TOPOLOGIES:
    return _TOPOLOGIES[canonical]
  generation = canonical.partition('-')[0]
  if generation in _GENERATIONS:
    known = f'The slices of {generation} are {", ".join(names(generation))}.'
  else:
    close = difflib.get_close_matches(canonical, names(), n=3)
    hint = f'Did you mean {" or ".join(close)}? ' if close else ''
    known = f'{hint}Generations are {", ".join(_GENERATIONS)}.'
  raise errors.ConfigError(f'No TPU topology {name!r}. {known}')


def family(name: str) -> tuple[Topology, ...]:
  """Returns all slices of a generation, the smallest first.

  Args:
    name: of the generation, or of a slice of it.

  Raises:
    ConfigError: there is none of that name.
  """
  generation = _canonical(name)
  if generation not in _GENERATIONS:
    generation = find(name).generation
  return tuple(_TOPOLOGIES[each] for each in names(generation))


def devices(topology: Topology) -> list[jax.Device]:
  """Returns a slice's devices, which one can compile for and not run on.

  Raises:
    ConfigError: there is no libtpu.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise errors.ConfigError(
      'Compiling for a TPU needs libtpu, which runs on any Linux machine: '
      'pip install -e ".[plan]" -c constraints.txt'
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  options = {}
  if topology.chip_config_name is not None:
    options['chip_config_name'] = topology.chip_config_name
  if topology.wrap is not None:
    options['wrap'] = topology.wrap
  return topologies.get_topology_desc(
    topology.compiler_name,
    'tpu',
    chips_per_host_bounds=topology.chips_per_host_bounds,
    **options,
  ).devices


def _canonical(name: str) -> str:
  generation, dash, count = name.strip().lower().partition('-')
  return _ALIASES.get(generation, generation) + dash + count


def _all_topologies() -> dict[str, Topology]:
  by_name = {}
  for name, generation in _GENERATIONS.items():
    for text in generation.shapes.split():
      shape = tuple(map(int, text.split('x')))
      chips = math.prod(shape)
      topology = Topology(
        name=f'{name}-{chips * generation.counted_per_chip}',
        generation=name,
        shape=shape,
        num_devices=chips * generation.devices_per_chip,
        memory_bytes=int(generation.memory_gib * _GIB),
        chip_config_name=generation.chip_config_name,
      )
      by_name[topology.name] = topology
  return by_name


_TOPOLOGIES: Mapping[str, Topology] = _all_topologies()
