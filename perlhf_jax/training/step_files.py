"""Finds and reads the steps of a MODEL_DIR.

MODEL_DIR/checkpoints/<step>/ holds the item `state` (a `TrainState`, or the
`PolicyState` of reinforcement learning: for LoRA the adapter, heads and
optimizer, never the frozen backbone), the item `metadata` (JSON with everything
that is needed to use the step without the configuration that made it, see
`checkpoints.run_metadata`), the metric of its evaluation, and the digests of
all of them (`step_digests`). `checkpoint_manager` writes it.

A step that is not as it was saved is damaged. Whoever reads the newest or the
best step gets an intact one; damaged ones are renamed, never removed. Whoever
reads a step by number gets that step or an error. Names, sizes and small files
are checked before a step is chosen, and arrays when they are read.
"""

from collections.abc import Callable, Mapping
import contextlib
import os
import time
from typing import Any, TypeVar

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from perlhf_jax.core import errors
from perlhf_jax.core import outside
from perlhf_jax.core import strict_json
from perlhf_jax.core import typing
from perlhf_jax.training import multihost
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests
from perlhf_jax.training import stored_arrays

T = TypeVar('T')

CHECKPOINTS = 'checkpoints'
BEST = 'best'
METRIC = 'selection'
# Most digits of a step number, those of int64.
_LONGEST = 19
_SHARING_SECONDS = 30
# Orbax writes it last where folders cannot be renamed atomically.
_COMMITTED = 'commit_success.txt'


def absolute(path: str) -> epath.Path:
  """Makes a path absolute, as Orbax needs it."""
  return epath.Path(path if '://' in path else os.path.abspath(path))


def prepare_model_dir(model_dir: str) -> epath.Path:
  """Creates MODEL_DIR and checks that every process can use it.

  Raises:
    CheckpointError: MODEL_DIR cannot be written to, or the hosts do not share
      it.
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
    failure = outside.failure_of(e)
    first = failure and failure.remedy
    error = errors.CheckpointError(
      f'MODEL_DIR {model_dir} cannot be written to: {failure or e}. '
      f'{f"{first}, or choose" if first else "Choose"} another folder.'
    )
  multihost.raise_together(error)
  try:
    multihost.raise_together(None if _appears(probe) else _not_shared(path))
  finally:
    if is_first:
      probe.unlink(missing_ok=True)  # Another run may have removed it.
  return path


def _appears(path: epath.Path) -> bool:
  """Whether a file exists, or appears soon: network file systems lag."""
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
  """Resolves a path to a step's folder, without reading its arrays.

  Use `read_intact` for a step to load.

  Args:
    path: MODEL_DIR (its newest step), MODEL_DIR/checkpoints/<step>, or
      MODEL_DIR/checkpoints/best (the best by the validation metric).

  Returns:
    The step's folder, absolute; None if the path is not a perlhf_jax
    checkpoint.

  Raises:
    CheckpointError: the path is a checkpoint without such a step, or all its
      steps are damaged.
  """
  step, root, wants_best = _resolve(path)
  if step is None:
    return root and _by_names(root, wants_best)
  damage = step_damage.damage_of(step)
  if damage is not None:
    error = step_damage.DamagedError(step, damage)
    error.on_every_host = False
    raise error
  return step


def read_intact(path: str, read: Callable[[epath.Path], T]) -> T:
  """Reads a step, or the next best one if its arrays are damaged.

  All processes call it together. Once a step is read, the damaged ones that
  would have been used are renamed if possible.

  Args:
    path: a checkpoint, as for `find_step`.
    read: reads a step, given its folder, with `read_trainable` or
      `read_state`; called again if they raise a `DamagedError`.

  Returns:
    The result of `read`.

  Raises:
    CheckpointError: the path is a checkpoint without such a step, or without
      an intact one.
  """
  step, root, wants_best = _resolve(path)
  if step is None:
    return _read_intact(root, wants_best, read)
  damage = step_damage.damage_together(step)
  if damage is not None:
    raise step_damage.DamagedError(step, damage)
  return read(step)


def newest_step(model_dir: epath.Path) -> epath.Path | None:
  """Returns the newest step, checked as by `find_step`; None without steps.

  Raises:
    CheckpointError: all steps are damaged.
  """
  return _newest(model_dir, _by_names)


def newest_whole_step(model_dir: epath.Path) -> epath.Path | None:
  """Returns the newest step, checked without its arrays; None without steps.

  All processes call it together. Newer steps that are damaged are renamed.

  Raises:
    CheckpointError: all steps are damaged.
  """
  return _newest(
    model_dir, lambda root, best: _read_intact(root, best, lambda step: step)
  )


def _newest(model_dir, choose):
  root = model_dir / CHECKPOINTS
  return choose(root, False) if root.is_dir() and step_folders(root) else None


def _resolve(path: str) -> tuple[epath.Path | None, epath.Path | None, bool]:
  """Returns the step that a path names, or the folder of steps to choose from.

  Returns:
    The step, the folder of steps, and whether the best one is wanted; neither
    a step nor a folder if the path is not a perlhf_jax checkpoint.
  """
  folder = absolute(path)
  is_at_home = folder.parent.name == CHECKPOINTS
  if is_step(folder) or (
    is_at_home and is_number(folder.name) and folder.is_dir()
  ):
    return folder, None, False
  if is_at_home and is_number(folder.name) and folder.parent.is_dir():
    raise errors.CheckpointError(
      f'{folder.parent} has no complete step {folder.name}.'
    )
  wants_best = folder.name == BEST and is_at_home
  root = folder.parent if wants_best else folder / CHECKPOINTS
  return None, root if root.is_dir() else None, wants_best


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


def _read_intact(
  root: epath.Path, wants_best: bool, read: Callable[[epath.Path], T]
) -> T:
  damaged: dict[str, str] = {}
  while True:
    step = _next(root, wants_best, damaged)
    try:
      result = read(step)
    except step_damage.DamagedError as error:
      if error.step != step:
        raise
      if _is_there(step):
        damaged[step.name] = error.damage
      continue
    if jax.process_index() == 0:
      for other, reason in damaged.items():
        step_damage.set_aside(
          root / other, f'{reason}. Step {step.name} is used'
        )
    return result


def _next(
  root: epath.Path, wants_best: bool, damaged: dict[str, str]
) -> epath.Path:
  """Chooses a step without reading arrays; all processes call it together.

  Args:
    root: folder of the steps.
    wants_best: whether to choose the best step instead of the newest.
    damaged: damage by name of a step; more is added.
  """
  with multihost.together():
    found = _order(root, wants_best)
  # File systems lag, so process 0's list is used on all processes.
  order, more = strict_json.loads(
    multihost.gather_texts(strict_json.dumps(found))[0]
  )
  damaged |= {name: more[name] for name in more if name not in damaged}
  gone = False
  for name in order:
    if name in damaged:
      continue
    damage = step_damage.damage_together(root / name)
    if damage is None:
      return root / name
    if _is_there(root / name):
      damaged[name] = damage
    else:
      gone = True
  if gone:
    return _next(root, wants_best, damaged)
  error = _nothing_left(root, wants_best, damaged)
  error.on_every_host = True
  raise error


def _is_there(step: epath.Path) -> bool:
  """Whether a step exists; an active run may have removed it as an old one."""
  return multihost.gather_texts(str(step.exists()))[0] == str(True)


def _order(
  root: epath.Path, wants_best: bool
) -> tuple[list[str], dict[str, str]]:
  """Returns step names, best choice first, and damaged steps with reasons.

  Only the choice of the best step reads metrics, and so finds damage here.
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
  """Returns a key that is larger for a better step; None if not evaluated.

  Of steps with the same metric the first is the best.

  Raises:
    CheckpointError: the metrics are not JSON.
  """
  file = step / step_digests.METRICS / step_digests.METRICS
  value = step_damage.read_json(file).get(METRIC) if file.exists() else None
  return (value, -int(step.name)) if isinstance(value, int | float) else None


def step_folders(root: epath.Path) -> list[epath.Path]:
  """Returns the folders of saved steps, damaged ones included, oldest first."""
  steps = [
    path
    for path in root.iterdir()
    if is_number(path.name) and path.is_dir() and _is_committed(path)
  ]
  return sorted(steps, key=lambda path: int(path.name))


def is_number(name: str) -> bool:
  """Whether a name is a step number."""
  # `isdigit` alone would accept other digits, such as ².
  is_digits = name.isascii() and name.isdigit()
  return is_digits and len(name) <= _LONGEST and str(int(name)) == name


def _is_committed(step: epath.Path) -> bool:
  """Whether a step was saved completely.

  On a disk, a step gets its final name only then.
  """
  return '://' not in os.fspath(step) or any(
    (step / name).exists() for name in (step_digests.FILE, _COMMITTED)
  )


def is_step(folder: epath.Path) -> bool:
  """Whether a folder is a step, wherever it is."""
  return (folder / step_digests.FILE).exists() or (
    (folder / step_digests.METADATA).is_dir()
    and (folder / step_digests.STATE).is_dir()
  )


def model_dir_of(step: epath.Path) -> epath.Path:
  """Returns the MODEL_DIR of a step's folder.

  For a step that was copied out of its MODEL_DIR, it is the step itself.
  """
  is_at_home = step.parent.name == CHECKPOINTS
  return step.parent.parent if is_at_home else step


def read_metadata(step: epath.Path) -> dict[str, Any]:
  """Reads the metadata of a step.

  Raises:
    CheckpointError: the metadata is not JSON.
  """
  try:
    fields = step_damage.read_json(step_damage.metadata_file(step))
  except step_damage.NoJsonError as error:
    raise errors.CheckpointError(
      f'{error}. Copy the checkpoint again, or use another step.'
    ) from error
  fields.pop(step_damage.HAS_DIGESTS, None)
  return fields


def read_trainable(
  step: epath.Path,
  role: str | None = None,
  params_shardings: typing.PyTree | None = None,
  expected: typing.PyTree | None = None,
) -> typing.PyTree:
  """Reads the trainable leaves of a step, without the optimizer.

  All processes call it together.

  Args:
    step: folder of the step.
    role: model to read, if several were trained together.
    params_shardings: shardings of `params`, if the step has any; each host then
      reads only its own shards, straight onto its devices.
    expected: tree of the expected shapes and dtypes; None to accept any.

  Returns:
    The tree, of numpy arrays; leaves with shardings are `jax.Array`s.

  Raises:
    DamagedError: the arrays are damaged.
    CheckpointError: the arrays cannot be read, or, before any is read, they are
      not the expected ones or do not fit into the free memory.
  """
  trainable = step_damage.read_arrays(
    step, lambda: _read_trainable(step, role, params_shardings, expected)
  )['trainable']
  return trainable if role is None else trainable[role]


def _read_trainable(step: epath.Path, role, params_shardings, expected):
  state = step / step_digests.STATE
  stored_arrays.check_index(state)
  # The bare handler, since a Checkpointer expects metadata of a whole step.
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
  return {'trainable': restored['trainable']}
