"""The steps of a MODEL_DIR: which there are, which are whole, and their files.

MODEL_DIR/checkpoints/<step>/ holds the item `state` (a `TrainState`, or the
`PolicyState` of reinforcement learning: for LoRA the adapter, heads and
optimizer, never the frozen backbone), the item `metadata` (JSON: everything
that is needed to use the step without the configuration that made it, see
`checkpoints.run_metadata`), the metric of its evaluation, and the digests of
all of them (`step_digests`). `checkpoint_manager` writes it.

A step that is not as it was saved is damaged. Whoever asks for the newest step
or for the best one gets an intact one, and damaged ones are set aside under
another name, never removed. Who asks for a step by its number gets that one or
an error.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import os
import time
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.core import typing
from perlhf_jax.training import multihost
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests
from perlhf_jax.training import stored_arrays

CHECKPOINTS = 'checkpoints'
BEST = 'best'
METRIC = 'selection'
# Digits of a step's number; those of int64.
_LONGEST = 19
_SHARING_SECONDS = 30
# Orbax writes it last where a file system cannot rename a folder at once.
_COMMITTED = 'commit_success.txt'


def absolute(path: str) -> epath.Path:
  """Makes a path independent of the current folder; Orbax takes no other."""
  return epath.Path(path if '://' in path else os.path.abspath(path))


def prepare_model_dir(model_dir: str) -> epath.Path:
  """Makes MODEL_DIR and proves that every process can use it.

  Raises:
    CheckpointError: it cannot be written to, or it is another folder on
      another host.
  """
  path = absolute(model_dir)
  probe = path / '.write_test'
  is_first = jax.process_index() == 0
  error = None
  try:
    if is_first:
      path.mkdir(parents=True, exist_ok=True)
      probe.write_text('')
  except OSError as e:
    error = errors.CheckpointError(
      f'MODEL_DIR {model_dir} cannot be written to: {e}. Choose a folder '
      'that you may write to.'
    )
  multihost.raise_together(error)
  try:
    multihost.raise_together(None if _appears(probe) else _not_shared(path))
  finally:
    if is_first:
      probe.unlink(missing_ok=True)  # A second run may have been faster.
  return path


def _appears(path: epath.Path) -> bool:
  """Whether a file is there, or comes to be: network file systems lag."""
  for _ in range(_SHARING_SECONDS):
    with contextlib.suppress(OSError):
      if path.exists():
        return True
    time.sleep(1)
  return False


def _not_shared(model_dir: epath.Path) -> errors.CheckpointError:
  return errors.CheckpointError(
    f'MODEL_DIR {model_dir} is not the folder in which process 0 writes: give '
    'one that all hosts share, in a bucket (gs://...) or on a network disk.'
  )


def find_step(path: str) -> epath.Path | None:
  """Resolves a path to one step's folder, to look at what it is.

  Arrays are not read: `intact_step` finds what can be loaded.

  Args:
    path: MODEL_DIR (its newest step), MODEL_DIR/checkpoints/<step>, or
      MODEL_DIR/checkpoints/best (the best by the validation metric).

  Returns:
    The step's folder, absolute; None if the path is no checkpoint of ours.

  Raises:
    CheckpointError: it is one, but has no such step, or no whole one.
  """
  return _find(path, _by_names)


def intact_step(path: str) -> epath.Path | None:
  """Resolves a path to a step of which every file is as it was saved.

  All processes call it together, and share the reading of the files. Damaged
  steps that would have been used are set aside if they can be.

  Args:
    path: of `find_step`.

  Returns:
    The step's folder, absolute; None if the path is no checkpoint of ours.

  Raises:
    CheckpointError: it is one, but has no such step, or no intact one.
  """
  return _find(path, _by_contents)


def newest_step(model_dir: epath.Path) -> epath.Path | None:
  """Returns the newest whole step, as `find_step`; None if there is none.

  Raises:
    CheckpointError: there are steps, all of them damaged.
  """
  return _newest(model_dir, _by_names)


def newest_intact_step(model_dir: epath.Path) -> epath.Path | None:
  """Returns the newest intact step, as `intact_step`; None if there is none.

  Raises:
    CheckpointError: there are steps, all of them damaged.
  """
  return _newest(model_dir, _by_contents)


def _newest(model_dir, choose):
  root = model_dir / CHECKPOINTS
  return choose(root, False) if root.is_dir() and step_folders(root) else None


def _find(
  path: str, choose: Callable[[epath.Path, bool], epath.Path]
) -> epath.Path | None:
  folder = absolute(path)
  is_at_home = folder.parent.name == CHECKPOINTS
  if is_step(folder) or (
    is_at_home and is_number(folder.name) and folder.is_dir()
  ):
    _check_one(folder, choose)
    return folder
  if is_at_home and is_number(folder.name) and folder.parent.is_dir():
    raise errors.CheckpointError(
      f'{folder.parent} has no complete step {folder.name}.'
    )
  wants_best = folder.name == BEST and is_at_home
  root = folder.parent if wants_best else folder / CHECKPOINTS
  return choose(root, wants_best) if root.is_dir() else None


def _check_one(step: epath.Path, choose) -> None:
  check = step_damage.damage_of
  if choose is _by_contents:
    check = step_damage.damage_together
  damage = check(step)
  if damage is not None:
    error = errors.CheckpointError(
      f'The step {step} is damaged: {damage}. Give another step, or its '
      'MODEL_DIR, of which the newest intact one is taken.'
    )
    error.on_every_host = choose is _by_contents
    raise error


def _by_names(root: epath.Path, wants_best: bool) -> epath.Path:
  """Chooses a step without reading arrays."""
  order, damaged = _order(root, wants_best)
  for name in order:
    damage = damaged.get(name) or step_damage.damage_of(root / name)
    if damage is None:
      for other, reason in damaged.items():
        step_damage.warn_once(
          f'{root / other} is damaged: {reason}. Step {name} is used.'
        )
      return root / name
    damaged[name] = damage
  raise _nothing_left(root, wants_best, damaged)


def _by_contents(root: epath.Path, wants_best: bool) -> epath.Path:
  """Chooses a step and reads it whole; on all processes together."""
  with multihost.together():
    found = _order(root, wants_best)
  # File systems lag: what the first process sees counts.
  order, damaged = strict_json.loads(
    multihost.gather_texts(strict_json.dumps(found))[0]
  )
  gone = False
  for name in order:
    damage = damaged.get(name) or step_damage.damage_together(root / name)
    if damage is None:
      if jax.process_index() == 0:
        for other, reason in damaged.items():
          step_damage.set_aside(root / other, f'{reason}. Step {name} is used')
      return root / name
    # The run that saves steps here removes old ones.
    there = multihost.gather_texts(str((root / name).exists()))[0]
    if there == str(True):
      damaged[name] = damage
    else:
      gone = True
  if gone:
    return _by_contents(root, wants_best)
  error = _nothing_left(root, wants_best, damaged)
  error.on_every_host = True
  raise error


def _order(
  root: epath.Path, wants_best: bool
) -> tuple[list[str], dict[str, str]]:
  """Returns steps by name, the one to take first; and the damaged ones.

  To know the best step, the metrics of all are read; damage is found then.
  """
  names = [step.name for step in reversed(step_folders(root))]
  if not wants_best:
    return names, {}
  damaged = {name: step_damage.damage_of(root / name) for name in names}
  damaged = {name: damage for name, damage in damaged.items() if damage}
  ranks = {name: rank(root / name) for name in names if name not in damaged}
  evaluated = [name for name in ranks if ranks[name] is not None]
  return sorted(evaluated, key=ranks.get, reverse=True), damaged


def _nothing_left(
  root: epath.Path, wants_best: bool, damaged: Mapping[str, str]
) -> errors.CheckpointError:
  listed = ', '.join(f'{name} ({reason})' for name, reason in damaged.items())
  if not step_folders(root):
    return errors.CheckpointError(f'{root} holds no complete step yet.')
  if not wants_best:
    return errors.CheckpointError(
      f'No intact step is left in {root}. Damaged: {listed}. Copy a step '
      'there from elsewhere, or give another MODEL_DIR.'
    )
  return errors.CheckpointError(
    f'No step in {root} was evaluated, so none is the best; name a step.'
    + (f' Damaged: {listed}.' if damaged else '')
  )


def rank(step: epath.Path) -> tuple[float, int] | None:
  """Returns what is larger of a better step; None if it was not evaluated.

  Of equals the first is the better one: training longer did not help.

  Raises:
    CheckpointError: its metrics are no JSON.
  """
  file = step / step_digests.METRICS / step_digests.METRICS
  value = step_damage.read_json(file).get(METRIC) if file.exists() else None
  return (value, -int(step.name)) if isinstance(value, int | float) else None


def step_folders(root: epath.Path) -> list[epath.Path]:
  """Returns the folders of steps that are complete, or were, oldest first."""
  steps = [
    path
    for path in root.iterdir()
    if is_number(path.name) and path.is_dir() and _is_committed(path)
  ]
  return sorted(steps, key=lambda path: int(path.name))


def is_number(name: str) -> bool:
  """Whether a name is that of a step."""
  # Other digits than these, such as ², are no names of steps.
  is_digits = name.isascii() and name.isdigit()
  return is_digits and len(name) <= _LONGEST and str(int(name)) == name


def _is_committed(step: epath.Path) -> bool:
  """Whether a step is more than one that is being saved.

  Elsewhere than in a bucket, it gets its name when it is complete.
  """
  return '://' not in os.fspath(step) or any(
    (step / name).exists() for name in (step_digests.FILE, _COMMITTED)
  )


def is_step(folder: epath.Path) -> bool:
  """Whether a folder is that of a step, wherever it lies."""
  return (folder / step_digests.FILE).exists() or (
    (folder / step_digests.METADATA).is_dir()
    and (folder / step_digests.STATE).is_dir()
  )


def model_dir_of(step: epath.Path) -> epath.Path:
  """Returns the MODEL_DIR of a step's folder.

  A folder that was copied out of its MODEL_DIR stands for one itself.
  """
  is_at_home = step.parent.name == CHECKPOINTS
  return step.parent.parent if is_at_home else step


def read_metadata(step: epath.Path) -> dict[str, Any]:
  """Reads the metadata of a step's folder.

  Raises:
    CheckpointError: they are no JSON.
  """
  try:
    fields = step_damage.read_json(step_damage.metadata_file(step))
  except step_damage.NoJsonError as error:
    raise errors.CheckpointError(
      f'{error}. Copy the checkpoint again, or use another step.'
    ) from error
  fields.pop(step_damage.HAS_DIGESTS, None)
  return fields


@contextlib.contextmanager
def reading(step: epath.Path) -> Iterator[None]:
  """Makes errors of other libraries about the files of a step a user's.

  They cannot be told apart by their class. That memory ran out or another
  process was lost is not the fault of the files.
  """
  try:
    yield
  except (errors.UserError, jax.errors.JaxRuntimeError, MemoryError):
    raise
  except Exception as error:
    if multihost.lost_host(error):
      raise
    lines = str(error).strip().splitlines() or ['']
    raise errors.CheckpointError(
      f'The step {step} cannot be read ({type(error).__name__}: '
      f'{lines[0][:300]}). If it is damaged, move it away: the step before it '
      'is used then.'
    ) from error


def read_trainable(
  step: epath.Path,
  role: str | None = None,
  params_shardings: typing.PyTree | None = None,
  expected: typing.PyTree | None = None,
) -> typing.PyTree:
  """Reads the trainable leaves of a step, without the optimizer.

  Args:
    step: the step's folder.
    role: of several models that were trained together, the one to read.
    params_shardings: of `params`, where there are any: each host then reads
      its own part of them alone, straight onto its devices.
    expected: the tree by its shapes and dtypes; None to take what is there.

  Returns:
    The tree, of numpy arrays but for what was given shardings.

  Raises:
    CheckpointError: the arrays cannot be read, are not the expected ones, or do
      not fit into the memory that is free; none was read then.
  """
  with reading(step):
    return _read_trainable(step, role, params_shardings, expected)


def _read_trainable(step: epath.Path, role, params_shardings, expected):
  state = step / step_digests.STATE
  stored_arrays.check_index(state)
  # The bare handler: a Checkpointer looks for metadata of a whole step here.
  handler = ocp.PyTreeCheckpointHandler()
  wanted = handler.metadata(state).tree.get('trainable', {})
  if role is not None:
    wanted = wanted.get(role, {})
  if expected is not None:
    stored_arrays.check_shapes(wanted, expected, step)
  shardings = {} if params_shardings is None else {'params': params_shardings}
  stored_arrays.check_room(wanted, shardings, step)
  restore_args = {}
  for name, tree in wanted.items():
    if name == 'params' and params_shardings is not None:
      restore_args[name] = jax.tree.map(
        lambda _, sharding: ocp.ArrayRestoreArgs(sharding=sharding),
        tree,
        params_shardings,
      )
    else:
      restore_args[name] = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
      )

  def nest(tree):
    return {'trainable': tree if role is None else {role: tree}}

  restored = handler.restore(
    state,
    args=ocp.args.PyTreeRestore(
      item=nest(wanted), restore_args=nest(restore_args), partial_restore=True
    ),
  )
  handler.close()
  trainable = restored['trainable']
  return trainable if role is None else trainable[role]
