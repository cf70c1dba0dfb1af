"""Finds damaged steps, and renames them so that they are not used."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import gc
import itertools
import logging as python_logging
import re
import sys
import traceback
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.core import typing
from perlhf_jax.training import array_digests
from perlhf_jax.training import multihost
from perlhf_jax.training import step_digests

# Key of the metadata of steps that were saved with digests.
HAS_DIGESTS = 'digests'
_SET_ASIDE = '.damaged'
# TensorStore's status codes for errors that damage does not cause.
_OUTSIDE = re.compile(
  r'\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED'
  r'|RESOURCE_EXHAUSTED|ABORTED|CANCELLED)\b'
)

# Warnings that this process has logged.
_told: set[str] = set()


class NoJsonError(errors.CheckpointError):
  """A file does not hold the JSON object that it should."""


class DamagedError(errors.CheckpointError):
  """The arrays of a step differ from what was saved, or cannot be read.

  Raised on all processes.

  Attributes:
    step: folder of the step.
    damage: describes the damage.
  """

  def __init__(self, step: epath.Path, damage: str):
    super().__init__(
      f'The step {step} is damaged: {damage}. Give another step, or its '
      'MODEL_DIR, of which the newest intact one is taken.'
    )
    self.step, self.damage = step, damage
    self.on_every_host = True


def damage_of(step: epath.Path) -> str | None:
  """Describes the damage of a step; None if no damage is found.

  Arrays are not read, see `read_arrays`.

  Args:
    step: folder of the step.

  Raises:
    CheckpointError: the files cannot be read, for another reason than damage.
  """
  try:
    # Raises an error if the folder may not be read, as `is_dir` would not.
    names = {path.name for path in step.iterdir()}
    for item in step_digests.METADATA, step_digests.STATE:
      if item not in names:
        return f'{item} is missing'
    try:
      digests = step_digests.read(step)
    except ValueError as error:
      return f'{step_digests.FILE} was changed: {error}'
    if digests is not None:
      # The folder was copied to another step's place.
      if step.name.isdecimal() and int(step.name) != digests.step:
        return f'it holds step {digests.step}'
      return step_digests.find_damage(step, digests)
    fields = read_json(metadata_file(step))
    if HAS_DIGESTS in fields and step_digests.FILE not in names:
      return f'{step_digests.FILE} is missing'
    if step_digests.METRICS in names:
      read_json(step / step_digests.METRICS / step_digests.METRICS)
  except NoJsonError as error:
    return str(error)
  except FileNotFoundError as error:
    return f'{error.filename or error} is missing'
  except OSError as error:
    raise errors.CheckpointError(
      f'The step {step} cannot be read ({error}). See that it is there, and '
      'that you may read it.'
    ) from error
  return None


def damage_together(step: epath.Path) -> str | None:
  """Checks a step as `damage_of` does, on every process.

  Args:
    step: folder of the step.

  Returns:
    As `damage_of`, and the same on every process.

  Raises:
    CheckpointError: as in `damage_of`, on any process.
  """
  damage = None
  with multihost.together():
    damage = damage_of(step)
  return _of_any(damage)


def read_arrays(
  step: epath.Path,
  read: Callable[[], typing.PyTree],
  *,
  even_if_off: bool = False,
) -> typing.PyTree:
  """Reads arrays of a step and checks them; all processes call it together.

  Args:
    step: folder of the step.
    read: reads arrays, as they are stored; returns a tree with their paths in
      the step. No process may wait for another in it.
    even_if_off: whether to check the arrays even if PERLHF_VERIFY is off.

  Returns:
    The result of `read`.

  Raises:
    DamagedError: the arrays differ from what was saved, or are unreadable.
    CheckpointError: the arrays cannot be read, for another reason than damage;
      or `read` raises one.
    ConfigError: PERLHF_VERIFY is neither `off` nor unset.
  """
  digests = arrays = damage = None
  off = False
  with multihost.together():
    off = step_digests.is_off() and not even_if_off
    digests = _digests(step)
    if digests is None:
      warn_once(
        f'{step} was saved without digests of its arrays by an earlier '
        'version, so that damage to its contents would not be seen.'
      )
    try:
      with _without_leftovers():
        arrays = read()
    # Errors of memory and of the runtime are not caused by the files.
    except (errors.UserError, jax.errors.JaxRuntimeError, MemoryError):
      raise
    except Exception as error:
      if multihost.lost_host(error):
        raise
      text = _first_line(error)
      if digests is None or _is_outside(error):
        raise errors.CheckpointError(
          f'The step {step} cannot be read ({text}). If it is damaged, move it '
          'away: the step before it is used then.'
        ) from error
      damage = f'its arrays cannot be read ({text})'
  damage = _of_any(damage)
  # All processes must run the same programs.
  if (
    damage is None and digests is not None and not _of_any('off' if off else '')
  ):
    names = array_digests.changed(arrays, digests.arrays)
    damage = _of_any(
      step_digests.listed([f'the array {name} was changed' for name in names])
    )
  if damage is not None:
    raise DamagedError(step, damage)
  return arrays


@contextlib.contextmanager
def _without_leftovers() -> Iterator[None]:
  """Silences the tasks of Orbax that fail after the first one.

  Nobody waits for them any more, and Python would print each one's traceback
  when it frees them.
  """
  logger, hook = python_logging.getLogger('asyncio'), sys.unraisablehook
  logger.disabled, sys.unraisablehook = True, lambda _: None
  try:
    yield
  except Exception as error:
    # Its frames hold the tasks.
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    raise
  finally:
    logger.disabled, sys.unraisablehook = False, hook


def _digests(step: epath.Path) -> step_digests.Digests | None:
  try:
    return step_digests.read(step)
  except (OSError, ValueError) as error:
    raise errors.CheckpointError(
      f'The digests of the step {step} cannot be read ({error}).'
    ) from error


def _of_any(text: str | None) -> str | None:
  """Returns the first text that a process has, on all processes."""
  return next(filter(None, multihost.gather_texts(text or '')), None)


def _is_outside(error: Exception) -> bool:
  """Whether an error of reading is one of the disk, network or permissions."""
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno not in (errno.EIO, errno.ENOENT)
  return _OUTSIDE.search(str(error)) is not None


def _first_line(error: Exception) -> str:
  line = (str(error).strip().splitlines() or [''])[0]
  return f'{type(error).__name__}: {line[:300]}'


def set_aside(step: epath.Path, reason: str) -> None:
  """Renames a damaged step, so that it no longer counts as a step.

  Args:
    step: folder of the step.
    reason: the damage and its consequence, for the log.
  """
  names = (f'{step.name}{_SET_ASIDE}{suffix}' for suffix in _suffixes())
  target = next(p for p in map(step.parent.joinpath, names) if not p.exists())
  try:
    step.rename(target)
  # Bucket file systems raise their own exception classes.
  except Exception as error:
    warn_once(
      f'{step} is damaged: {reason}. It stays where it is, for it cannot be '
      f'renamed ({error}).'
    )
  else:
    logging.warning(
      '%s is damaged: %s. It is kept as %s.', step, reason, target.name
    )


def set_aside_in(root: epath.Path) -> list[str]:
  """Returns the names of the steps in a folder that were set aside."""
  return sorted(p.name for p in root.iterdir() if _SET_ASIDE in p.name)


def _suffixes() -> Iterator[str]:
  yield ''
  yield from (f'-{number}' for number in itertools.count(2))


def warn_once(message: str) -> None:
  """Logs a warning, unless this process has logged it before."""
  if message not in _told:
    _told.add(message)
    logging.warning('%s', message)


def metadata_file(step: epath.Path) -> epath.Path:
  """Returns the path of a step's metadata."""
  return step / step_digests.METADATA / step_digests.METADATA


def read_json(file: epath.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    NoJsonError: the file holds no JSON object, is missing, or is too large.
  """
  try:
    content = plain_files.read(file, NoJsonError)
    fields = strict_json.loads(content, allow_nan=True)
  except FileNotFoundError as error:
    raise NoJsonError(f'{file} is missing') from error
  except ValueError as error:
    raise NoJsonError(f'{file} is not JSON ({error})') from error
  if not isinstance(fields, dict):
    raise NoJsonError(f'{file} holds no JSON object')
  return fields
