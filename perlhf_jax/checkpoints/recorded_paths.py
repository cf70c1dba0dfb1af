"""Records paths of other checkpoints so that they are found after a move.

A path is recorded twice: absolute, and relative to the MODEL_DIR that records
it. The relative path still works after a whole tree of MODEL_DIRs was moved. A
fingerprint shows whether the checkpoint found is the recorded one.
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
# The longest path on Linux; remote addresses are shorter.
_MAX_LENGTH = 4096


def describe(
  path: str, model_dir: epath.Path, name: str = 'path'
) -> dict[str, str]:
  """Returns `{'path', 'relative_path'}`, the latter if it exists.

  Args:
    path: the path of a checkpoint or another directory.
    model_dir: the MODEL_DIR of the run that records it.
    name: the name of the entries, `path` or another.
  """
  here = step_files.absolute(path)
  found = {name: path if _bucket(path) else str(here.resolve())}
  bucket = _bucket(path)
  if bucket == _bucket(str(model_dir)):
    found[_RELATIVE + name] = posixpath.relpath(
      str(here).removeprefix(bucket), str(model_dir).removeprefix(bucket)
    )
  return found


def moved(
  recorded: Mapping[str, str],
  model_dir: epath.Path,
  new_model_dir: epath.Path,
) -> dict[str, str]:
  """Returns a record for another MODEL_DIR that needs the same checkpoint.

  Args:
    recorded: the result of `describe`, perhaps with several names.
    model_dir: the current MODEL_DIR of the run that recorded it.
    new_model_dir: the MODEL_DIR that will record it, too.
  """
  found = {}
  for name, value in recorded.items():
    if name.startswith(_RELATIVE):
      continue
    if name.endswith('path'):
      place = candidates(recorded, model_dir, name)[0]
      found |= describe(place, new_model_dir, name)
    else:
      found[name] = value
  return found


def check(recorded: Any, name: str) -> None:
  """Checks a checkpoint's record of another one.

  Args:
    recorded: the record; should have the form that `describe` returns.
    name: the name of the record, for messages.

  Raises:
    ConfigError: the record has no path, or an entry that is not text.
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
  """Returns the paths to try, the likelier first.

  Args:
    recorded: the result of `describe`.
    model_dir: the current MODEL_DIR of the run that recorded it.
    name: see `describe`.
  """
  places = []
  if _RELATIVE + name in recorded:
    bucket = _bucket(str(model_dir))
    # Does not ask the file system, where `..` of a link is another folder.
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
  """Loads a recorded checkpoint from the first path that holds it.

  Args:
    recorded: the record; has a `fingerprint`, except for reward models in
      format 1.
    places: the paths to try.
    load_from: loads the checkpoint at a path.
    fingerprint_of: returns the fingerprint of a loaded checkpoint.

  Raises:
    CheckpointError: no path holds it; the message says what was found at each.
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
    failures.append(f'{place} is another model (fingerprint {found}).')
  raise errors.CheckpointError(' '.join(failures))


def _bucket(path: str) -> str:
  """Returns `gs://bucket`, or an empty string for a local path."""
  scheme, separator, rest = path.partition('://')
  return scheme + separator + rest.partition('/')[0] if separator else ''
