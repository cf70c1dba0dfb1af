"""Finds damaged steps, and renames them so that they are not used."""

from collections.abc import Iterator
import itertools
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.training import multihost
from perlhf_jax.training import step_digests

# Key of the metadata of steps that were saved with digests.
HAS_DIGESTS = 'digests'
_SET_ASIDE = '.damaged'

# Warnings that this process has logged.
_told: set[str] = set()


class NoJsonError(errors.CheckpointError):
  """A file does not hold the JSON object that it should."""


def damage_of(
  step: epath.Path,
  *,
  contents: bool = False,
  process: int = 0,
  processes: int = 1,
) -> str | None:
  """Describes the damage of a step; None if no damage is found.

  Args:
    step: folder of the step.
    contents: whether to read the arrays, too.
    process: index of the share of the files to read.
    processes: number of shares.

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
      return step_digests.find_damage(
        *(step, digests),
        contents=contents,
        process=process,
        processes=processes,
      )
    if HAS_DIGESTS in read_json(metadata_file(step)):
      return f'{step_digests.FILE} is missing'
    if step_digests.METRICS in names:
      read_json(step / step_digests.METRICS / step_digests.METRICS)
  except NoJsonError as error:
    return str(error)
  except FileNotFoundError as error:
    return f'{error.filename or error} is missing'
  except OSError as error:
    raise errors.CheckpointError(
      f'The step {step} cannot be read ({error}). Check that it exists and '
      'that you may read it.'
    ) from error
  if contents:
    warn_once(
      f'{step} was saved without digests by an earlier version, so that '
      'damage to its contents would not be seen.'
    )
  return None


def damage_together(step: epath.Path) -> str | None:
  """Checks a whole step, each process its share of the files.

  Args:
    step: folder of the step.

  Returns:
    As `damage_of`, and the same on every process.

  Raises:
    CheckpointError: as in `damage_of`, on any process.
    ConfigError: PERLHF_VERIFY is neither `off` nor unset.
  """
  damage = None
  alone = multihost.is_alone()
  with multihost.together():
    damage = damage_of(
      step,
      contents=not step_digests.is_off(),
      process=0 if alone else jax.process_index(),
      processes=1 if alone else jax.process_count(),
    )
  return next(filter(None, multihost.gather_texts(damage or '')), None)


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
      f'{step} is damaged: {reason}. It stays where it is, because it cannot '
      f'be renamed ({error}).'
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
    raise NoJsonError(f'{file} does not hold a JSON object')
  return fields
