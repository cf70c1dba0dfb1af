"""Cloud TPU slices by their usual names, translated for the compiler.

libtpu compiles for slices that this machine does not have. It names them by
generation and shape, such as `v5e:4x4`, not by the names of Cloud TPU. These
names are in tpu_topologies.txt, which the launchers read as well.

The number of slices that run one program precedes the name: `2xv5e-16`.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
from importlib import resources
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from perlhf_jax.core import errors

# Environment of a process that only compiles. Without it, libtpu looks for a
# TPU, warns that there is none, and allows one process per machine.
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
  """Common properties of a generation's slices.

  Attributes:
    compiler_name: libtpu's name of the generation.
    devices_per_chip: JAX devices per chip.
    memory_gib: GiB of a device's memory that libtpu lets a program use.
    chip_config_name: libtpu's chip configuration, if Cloud TPU does not use
      libtpu's default.
  """

  compiler_name: str
  devices_per_chip: int
  memory_gib: float
  chip_config_name: str | None = None


# Memory limits from libtpu 0.0.42's error when a program is too large.
_GENERATIONS: Mapping[str, _Generation] = {
  'v2': _Generation('v2', 2, 7.48),
  'v3': _Generation('v3', 2, 15.48),
  'v4': _Generation('v4', 1, 30.75, 'megacore'),
  'v5e': _Generation('v5e', 1, 15.75),
  'v5p': _Generation('v5', 1, 95.74),
  'v6e': _Generation('v6e', 1, 31.25),
  'tpu7x': _Generation('tpu7x', 2, 94.75),
}
_ALIASES = {'v5litepod': 'v5e', 'v7': 'tpu7x', 'v7x': 'tpu7x'}
_SEVERAL = re.compile(r'(\d+)x(.+)')


@dataclasses.dataclass(frozen=True)
class Topology:
  """One slice, or several equal slices.

  Attributes:
    name: Cloud TPU's name, such as `v5e-16`; for several slices with their
      number in front, such as `2xv5e-16`.
    generation: TPU generation, such as `v5e`.
    shape: chips of a slice along each axis.
    num_devices: JAX devices of all slices.
    memory_bytes: bytes of a device's memory that a program may use.
    chip_config_name: libtpu's chip configuration; None for its default.
    num_slices: number of slices that run one program.
  """

  name: str
  generation: str
  shape: tuple[int, ...]
  num_devices: int
  memory_bytes: int
  chip_config_name: str | None
  num_slices: int = 1

  @property
  def compiler_name(self) -> str:
    """The name that libtpu gives the slice."""
    generation = _GENERATIONS[self.generation].compiler_name
    return f'{generation}:{"x".join(map(str, self.shape))}'

  @property
  def chips_per_host_bounds(self) -> tuple[int, int, int]:
    """Chips per host along each axis."""
    return (1, 1, 1) if math.prod(self.shape) == 1 else (2, 2, 1)

  @property
  def wrap(self) -> tuple[bool, bool, bool] | None:
    """Which axes are rings; None for libtpu's default."""
    is_torus = len(self.shape) == 3 and all(n % 4 == 0 for n in self.shape)
    return (True, True, True) if is_torus else None


def names(generation: str | None = None) -> tuple[str, ...]:
  """Returns the names of all slices, or of one generation's slices."""
  return tuple(
    topology.name
    for topology in _topologies().values()
    if generation in (None, topology.generation)
  )


def find(name: str) -> Topology:
  """Finds a slice, or several equal slices, by name.

  Args:
    name: Cloud TPU's name, where `v5litepod-16` means `v5e-16`; `2xv5e-16` is
      two slices.

  Raises:
    ConfigError: no slice has this name.
  """
  num_slices, canonical = _canonical(name)
  if canonical in _topologies():
    return _several(_topologies()[canonical], num_slices)
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
    name: name of a generation, or of one of its slices; `2xv5e` gives pairs of
      slices.

  Raises:
    ConfigError: no generation or slice has this name.
  """
  num_slices, generation = _canonical(name)
  if generation not in _GENERATIONS:
    generation = find(name).generation
  return tuple(
    _several(_topologies()[each], num_slices) for each in names(generation)
  )


def devices(topology: Topology) -> list[jax.Device]:
  """Returns the devices of slices, for compiling only.

  Raises:
    ConfigError: libtpu is not installed.
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
  if topology.num_slices > 1:
    options['num_slices'] = topology.num_slices
  return topologies.get_topology_desc(
    topology.compiler_name,
    'tpu',
    chips_per_host_bounds=topology.chips_per_host_bounds,
    **options,
  ).devices


def _canonical(name: str) -> tuple[int, str]:
  """Splits a name into the number of slices and the name of one slice."""
  several = _SEVERAL.fullmatch(name.strip().lower())
  number, one = several.groups() if several else ('1', name.strip().lower())
  if not int(number):
    raise errors.ConfigError(
      f'No TPU topology {name!r}: give 1 or more slices, as in 2xv5e-16.'
    )
  generation, dash, count = one.partition('-')
  return int(number), _ALIASES.get(generation, generation) + dash + count


def _several(topology: Topology, num_slices: int) -> Topology:
  if num_slices == 1:
    return topology
  return dataclasses.replace(
    topology,
    name=f'{num_slices}x{topology.name}',
    num_devices=num_slices * topology.num_devices,
    num_slices=num_slices,
  )


@functools.cache
def _topologies() -> Mapping[str, Topology]:
  """Reads the table of slices, by name."""
  table = resources.files(__package__) / 'tpu_topologies.txt'
  by_name = {}
  for line in table.read_text().splitlines():
    if line.startswith('#'):
      continue
    name, *_, text, _, _ = line.split()
    generation = _GENERATIONS[name.partition('-')[0]]
    shape = tuple(map(int, text.split('x')))
    by_name[name] = Topology(
      name=name,
      generation=name.partition('-')[0],
      shape=shape,
      num_devices=math.prod(shape) * generation.devices_per_chip,
      memory_bytes=int(generation.memory_gib * _GIB),
      chip_config_name=generation.chip_config_name,
    )
  return by_name
