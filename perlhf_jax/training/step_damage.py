"""Whether a step is as it was saved, and what becomes of one that is not."""

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

# In the metadata: says that the step was saved with digests.
HAS_DIGESTS = 'digests'
_SET_ASIDE = '.damaged'

# Of which this process has warned.
_told: set[str] = set()


class NoJsonError(errors.CheckpointError):
  """A file that should hold a JSON object."""


def damage_of(
  step: epath.Path,
  *,
  contents: bool = False,
  process: int = 0,
  processes: int = 1,
) -> str | None:
  """Says what is wrong with a step; None if nothing is known to be.

  Args:
    step: its folder.
    contents: whether to read its arrays, too.
    process: which share of the files to read.
    processes: shares there are.

  Raises:
    CheckpointError: its files cannot be read, whatever they hold.
  """
  try:
    # It says where a folder may not be read; `is_dir` does not.
    names = {path.name for path in step.iterdir()}
    for item in step_digests.METADATA, step_digests.STATE:
      if item not in names:
        return f'{item} is missing'
    try:
      digests = step_digests.read(step)
    except ValueError as error:
      return f'{step_digests.FILE} was changed: {error}'
    if digests is not None:
      # A folder that was copied to where it does not belong.
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
      f'The step {step} cannot be read ({error}). See that it is there, and '
      'that you may read it.'
    ) from error
  if contents:
    warn_once(
      f'{step} was saved without digests by an earlier version, so that '
      'damage to its contents would not be seen.'
    )
  return None


def damage_together(step: epath.Path) -> str | None:
  """Reads a step whole, each process its share; all get the same answer.

  Args:
    step: its folder.

  Returns:
    As `damage_of`.

  Raises:
    CheckpointError: as `damage_of`, on any of the processes.
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
  """Gives a damaged step another name, so that nobody takes it for a step.

  Args:
    step: its folder.
    reason: what is wrong with it, and what follows.
  """
  names = (f'{step.name}{_SET_ASIDE}{suffix}' for suffix in _suffixes())
  target = next(p for p in map(step.parent.joinpath, names) if not p.exists())
  try:
    step.rename(target)
  # File systems of buckets have exceptions of their own.
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
  """Returns the names of the steps that were set aside in a folder."""
  return sorted(p.name for p in root.iterdir() if _SET_ASIDE in p.name)


def _suffixes() -> Iterator[str]:
  yield ''
  yield from (f'-{number}' for number in itertools.count(2))


def warn_once(message: str) -> None:
  """Warns, unless this process has said the same before."""
  if message not in _told:
    _told.add(message)
    logging.warning('%s', message)


def metadata_file(step: epath.Path) -> epath.Path:
  """Returns where a step says what it is."""
  return step / step_digests.METADATA / step_digests.METADATA


def read_json(file: epath.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    NoJsonError: the file holds none, is missing, or too large to be true.
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
