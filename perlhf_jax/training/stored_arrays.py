"""Checks the array metadata of a step before any array is read.

A file of a hundred bytes can declare an array of any size, and Orbax and
TensorStore allocate it before they look for its values.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from etils import epath
import jax
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import host_memory
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.core import tree_paths
from perlhf_jax.training import memory

_INDEX = '_METADATA'
_MOST_LISTED = 5
_AGAIN = 'Copy the checkpoint again, or use another step.'


def check_index(state: epath.Path) -> None:
  """Makes sure that no array name is a path out of the checkpoint.

  Args:
    state: folder of the item that Orbax wrote.

  Raises:
    CheckpointError: a name leads out of `state`, or the index is damaged.
  """
  path = state / _INDEX
  try:
    index = strict_json.loads(
      plain_files.read(path, errors.CheckpointError), allow_nan=True
    )
    names = [
      str(key['key'])
      for entry in index['tree_metadata'].values()
      for key in entry['key_metadata']
    ]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.CheckpointError(
      f'{path}, which lists the arrays of the step, cannot be read '
      f'({type(error).__name__}: {error}). {_AGAIN}'
    ) from error
  for name in names:
    if name.startswith('/') or '\0' in name or '..' in _parts(name):
      raise errors.CheckpointError(
        f'{path} has an array in {checks.shown(name)}, which is outside of the '
        f'checkpoint. {_AGAIN}'
      )


def check_shapes(
  found: Mapping[str, Any], expected: Mapping[str, Any], step: epath.Path
) -> None:
  """Makes sure that a step holds the arrays of its model.

  Args:
    found: nested dict of the step's arrays; leaves have a shape and a dtype.
    expected: nested dict of the model's arrays, likewise.
    step: folder of the step, for messages.

  Raises:
    CheckpointError: arrays are missing, left over, or of another shape or
      dtype.
  """
  there, wanted = tree_paths.flatten(found), tree_paths.flatten(expected)
  problems = [
    f'{verb} {", ".join(names[:_MOST_LISTED])}'
    for names, verb in (
      (sorted(wanted.keys() - there.keys()), 'it lacks'),
      (sorted(there.keys() - wanted.keys()), 'its model has no'),
    )
    if names
  ]
  problems += [
    f'{name} is {_described(there[name])} in its files, but '
    f'{_described(leaf)} in its metadata'
    for name, leaf in wanted.items()
    if name in there and _described(there[name]) != _described(leaf)
  ][:_MOST_LISTED]
  if problems:
    raise errors.CheckpointError(
      f'{step} does not hold the arrays of its own model: '
      f'{"; ".join(problems)}. {_AGAIN}'
    )


def check_room(
  arrays: Mapping[str, Any], shardings: Mapping[str, Any], step: epath.Path
) -> None:
  """Makes sure that this machine has memory for arrays before they are read.

  Args:
    arrays: nested dict; leaves have a shape and a dtype.
    shardings: shardings of the arrays that are read straight onto devices, by
      the same paths; the others are read into host memory.
    step: folder of the step, for messages.

  Raises:
    CheckpointError: the arrays need more memory than is free.
  """
  places = tree_paths.flatten(shardings)
  host = device = 0
  for name, leaf in tree_paths.flatten(arrays).items():
    if name in places:
      device += _bytes(places[name].shard_shape(tuple(leaf.shape)), leaf)
    else:
      host += _bytes(leaf.shape, leaf)
  for needed, free, where in (
    (host, host_memory.free_bytes(), 'on this machine'),
    (device, memory.device_free_bytes(), 'on a device'),
  ):
    if free is not None and needed > free:
      raise errors.CheckpointError(
        f'The arrays of {step} need {host_memory.gibibytes(needed)} of memory '
        f'{where}, but only {host_memory.gibibytes(free)} are free. Use more '
        'devices (--mesh_shape, MESH_SHAPE in gin) or a machine with more '
        'memory.'
      )


def _parts(name: str) -> tuple[str, ...]:
  return pathlib.PurePosixPath(name).parts


def _described(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype).name} {list(leaf.shape)}'


def _bytes(shape: tuple[int, ...], leaf: Any) -> int:
  return math.prod(shape) * jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize
