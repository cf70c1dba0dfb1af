"""What a compiled program sends from one slice to another, read from its HLO.

Devices are meant by their place in the mesh: a slice has as many neighbours.
"""

import math
import re

import numpy as np

_COLLECTIVE = re.compile(
  r'= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all'
  r'|collective-permute)(?:-start)?\('
)
_ITEM_BYTES = {'pred': 1, 'bf16': 2, 'f32': 4, 's32': 4, 'u32': 4}


def between_slices(program: str, devices_per_slice: int) -> dict[str, int]:
  """Returns bytes that come of collectives which join slices, by operation."""
  sent = {}
  for line in program.splitlines():
    match = _COLLECTIVE.search(line)
    if match and any(
      len({device // devices_per_slice for device in group}) > 1
      for group in _groups(line)
    ):
      shapes, operation = match.groups()
      sent[operation] = sent.get(operation, 0) + sum(
        _ITEM_BYTES[dtype] * math.prod(map(int, filter(None, shape.split(','))))
        for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', shapes)
      )
  return sent


def _numbers(text):
  return tuple(map(int, text.split(',')))


def _devices(shape, order):
  """The devices of `[2,4]T(1,0)`."""
  devices = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return devices.transpose(_numbers(order)) if order else devices


def _groups(line):
  """The groups of devices that a collective joins, in each way to write them.

  They are listed; or `[groups,size]<=[2,4]T(1,0)`; or axes of a mesh, as in
  `mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}`.
  """
  listed = re.search(
    r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)+)\}', line
  )
  if listed:
    return [_numbers(g) for g in re.findall(r'\{([\d,]+)\}', listed[1])]
  order = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
  iota = re.search(r'replica_groups=\[([\d,]+)\]<=' + order, line)
  if iota:
    return _devices(iota[2], iota[3]).reshape(_numbers(iota[1])).tolist()
  mesh = re.search(
    r'replica_groups=mesh\[(.*?)\](?:, device_ids=\('
    + order
    + r'\))? \{(.*?)\}',
    line,
  )
  assert mesh, line
  axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
  sizes = _numbers(','.join(axes.values()))
  devices = _devices(mesh[2], mesh[3]) if mesh[2] else np.arange(np.prod(sizes))
  joined = [name in re.findall(r"'(\w+)'", mesh[4]) for name in axes]
  # The axes that a group has not, then those that it has.
  devices = devices.reshape(sizes).transpose(np.argsort(joined, kind='stable'))
  size = math.prod(
    n for n, is_joined in zip(sizes, joined, strict=True) if is_joined
  )
  return devices.reshape(-1, size).tolist()
