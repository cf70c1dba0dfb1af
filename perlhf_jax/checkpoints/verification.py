"""Checks a whole MODEL_DIR: every file of every step, and the run's records."""

from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests
from perlhf_jax.training import step_files

# Files of a run that hold one JSON object, or one per line.
_RECORDS = ('summary.json', 'eval.json', 'metrics.jsonl', 'samples.jsonl')


class Finding(NamedTuple):
  """The result of checking a part of a MODEL_DIR.

  Attributes:
    name: the name of the part, such as `step 12`.
    text: describes its condition.
    damaged: whether the part differs from what was written.
  """

  name: str
  text: str
  damaged: bool


def verify(path: str) -> Iterator[Finding]:
  """Reads every file, even if PERLHF_VERIFY is off; changes nothing.

  Args:
    path: a MODEL_DIR or one of its steps.

  Raises:
    ConfigError: `path` is neither.
    CheckpointError: files cannot be read at all.
  """
  folder = step_files.absolute(path)
  root = folder / step_files.CHECKPOINTS
  if root.is_dir():
    yield from map(_verify_step, step_files.step_folders(root))
    for name in step_damage.set_aside_in(root):
      yield Finding(name, 'set aside by a run or a reader', damaged=False)
    for name in _RECORDS:
      if (folder / name).exists():
        yield _verify_record(folder / name)
    return
  if folder.name == step_files.BEST:
    folder = step_files.find_step(path)
  if folder is None or not folder.is_dir() or not step_files.is_step(folder):
    raise errors.ConfigError(
      f'{path} is neither a MODEL_DIR nor a step of one: it holds no digests '
      'to verify its files with. Leave out --verify.'
    )
  yield _verify_step(folder)


def _verify_step(step: epath.Path) -> Finding:
  name = f'step {step.name}'
  damage = step_damage.damage_of(step, contents=True)
  if damage is not None:
    return Finding(name, f'damaged: {damage}', damaged=True)
  digests = step_digests.read(step)
  if digests is None:
    return Finding(name, 'saved without digests', damaged=False)
  size = sum(digests.sizes.values()) / 2**20
  text = f'intact, {size:,.1f} MiB in {len(digests.sizes)} files'
  return Finding(name, text, damaged=False)


def _verify_record(file: epath.Path) -> Finding:
  try:
    text = plain_files.read(file, errors.CheckpointError).decode()
    records = text.splitlines() if file.suffix == '.jsonl' else [text]
    for number, record in enumerate(records, start=1):
      if not isinstance(strict_json.loads(record, allow_nan=True), dict):
        raise ValueError(f'record {number} is not a JSON object')
  except (ValueError, errors.CheckpointError) as error:
    return Finding(file.name, f'damaged: {error}', damaged=True)
  return Finding(file.name, f'intact, {len(records)} records', damaged=False)
