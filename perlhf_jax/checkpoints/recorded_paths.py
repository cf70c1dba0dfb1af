"""How a checkpoint names others, so that they are found after a move.

A path is recorded twice: absolute, and relative to the MODEL_DIR that records
it. A tree of MODEL_DIRs that was moved as a whole is found by the latter. A
fingerprint says whether what lies there is what was meant.
"""

from collections.abc import Callable, Mapping
import os
import posixpath
from typing import Any, TypeVar

from etils import epath

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.interop import remote_files
from perlhf_jax.training import step_files

Loaded = TypeVar('Loaded')

_RELATIVE = 'relative_'
# Longer than any path that Linux takes, or any address.
_MAX_LENGTH = 4096


def describe(
  path: str, model_dir: epath.Path, name: str = 'path'
) -> dict[str, str]:
  """Returns `{'path', 'relative_path'}`, the latter if there is one.

  Args:
    path: of a checkpoint or another directory.
    model_dir: of the run that records it.
    name: `path`, or what else to name the two entries.
  """
  here = step_files.absolute(path)
  found = {name: path if _bucket(path) else str(here.resolve())}
  bucket = _bucket(path)
  if bucket == _bucket(str(model_dir)):
    found[_RELATIVE + name] = posixpath.relpath(
      str(here).removeprefix(bucket), str(model_dir).removeprefix(bucket)
    )
  return found


def check(recorded: Any, name: str) -> None:
  """Makes sure that what a checkpoint says of another can be looked up.

  Args:
    recorded: what should be of `describe`.
    name: what it is, for messages.

  Raises:
    ConfigError: it names no path, or something else than text.
  """
  checks.check(name, recorded, Mapping[str, str])
  if 'path' not in recorded:
    raise errors.ConfigError(f'{name} has no path.')
  for key, value in recorded.items():
    if len(value) > _MAX_LENGTH or '\0' in value:
      raise errors.ConfigError(
        f'{name}.{key} is {checks.shown(value)}; a path has at most '
        f'{_MAX_LENGTH:,} characters, none of them NUL.'
      )


def candidates(
  recorded: Mapping[str, str], model_dir: epath.Path, name: str = 'path'
) -> list[str]:
  """Returns where to look, the likelier place first.

  Args:
    recorded: of `describe`.
    model_dir: where the run that recorded it lies now.
    name: as given to `describe`.
  """
  places = []
  if _RELATIVE + name in recorded:
    bucket = _bucket(str(model_dir))
    # Not by the file system, where `..` of a link is somewhere else.
    near = bucket + os.path.normpath(
      posixpath.join(
        str(model_dir).removeprefix(bucket), recorded[_RELATIVE + name]
      )
    )
    with remote_files.explained(near):
      if epath.Path(near).is_dir():
        places.append(near)
  return list(dict.fromkeys([*places, recorded[name]]))


def load(
  recorded: Mapping[str, str],
  places: list[str],
  load_from: Callable[[str], Loaded],
  fingerprint_of: Callable[[Loaded], str],
) -> Loaded:
  """Loads what a checkpoint names from the first place that has it.

  Args:
    recorded: with a `fingerprint`, but for reward models in format 1.
    places: where to look.
    load_from: loads what lies at a path.
    fingerprint_of: identifies what was loaded.

  Raises:
    CheckpointError: it is in none of the places; says what was found in each.
  """
  wanted = recorded.get('fingerprint')
  failures = []
  for place in places:
    try:
      loaded = load_from(place)
    except errors.CheckpointError as error:
      failures.append(str(error))
      continue
    found = fingerprint_of(loaded)
    if wanted in (None, found):
      return loaded
    failures.append(f'{place} is another one (fingerprint {found}).')
  raise errors.CheckpointError(' '.join(failures))


def _bucket(path: str) -> str:
  """Returns `gs://bucket`, or nothing for a local path."""
  scheme, separator, rest = path.partition('://')
  return scheme + separator + rest.partition('/')[0] if separator else ''
