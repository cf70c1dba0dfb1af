"""Finds and reads the steps of a MODEL_DIR.

MODEL_DIR/checkpoints/<step>/ holds the item `state` (a `TrainState`, or the
`PolicyState` of reinforcement learning: for LoRA the adapter, heads and
optimizer, never the frozen backbone), the item `metadata` (JSON with everything
that is needed to use the step without the configuration that made it, see
`checkpoints.run_metadata`), the metric of its evaluation, and the digests of
all of them (`step_digests`). `checkpoint_manager` writes it.

A step that is not as it was saved is damaged. A request for the newest or the
best step returns an intact one; damaged ones are renamed, never removed. A
request for a step by number returns that step or raises an error.
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
from perlhf_jax.core import outside
from perlhf_jax.core import strict_json
from perlhf_jax.core import typing
from perlhf_jax.training import multihost
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests
from perlhf_jax.training import stored_arrays

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

  Use `intact_step` for a step to load.

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
  return _find(path, _by_names)


def intact_step(path: str) -> epath.Path | None:
  """Resolves a path to a step whose files are all as they were saved.

  All processes call it together, and share the reading of the files. Damaged
  steps that would have been used are renamed if possible.

  Args:
    path: as for `find_step`.

  Returns:
    The step's folder, absolute; None if the path is not a perlhf_jax
    checkpoint.

  Raises:
    CheckpointError: the path is a checkpoint without such a step, or without
      an intact one.
  """
  return _find(path, _by_contents)


def newest_step(model_dir: epath.Path) -> epath.Path | None:
  """Returns the newest step, checked as by `find_step`; None without steps.

  Raises:
    CheckpointError: all steps are damaged.
  """
  return _newest(model_dir, _by_names)


def newest_intact_step(model_dir: epath.Path) -> epath.Path | None:
  """Returns the newest step, checked as by `intact_step`; None without steps.

  Raises:
    CheckpointError: all steps are damaged.
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
      'MODEL_DIR, whose newest intact step is then used.'
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
  """Chooses a step and checks its contents; all processes call it together."""
  with multihost.together():
    found = _order(root, wants_best)
  # File systems lag, so process 0's list is used on all processes.
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
    # An active run may have removed this step as an old one.
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


@contextlib.contextmanager
def reading(step: epath.Path) -> Iterator[None]:
  """Turns other libraries' errors from reading a step into CheckpointErrors.

  Their classes do not tell what went wrong. Errors of memory, of the runtime
  and of lost processes are not caused by the files, and pass unchanged.
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
    step: folder of the step.
    role: model to read, if several were trained together.
    params_shardings: shardings of `params`, if the step has any; each host then
      reads only its own shards, straight onto its devices.
    expected: tree of the expected shapes and dtypes; None to accept any.

  Returns:
    The tree, of numpy arrays; leaves with shardings are `jax.Array`s.

  Raises:
    CheckpointError: the arrays cannot be read, or, before any is read, they are
      not the expected ones or do not fit into the free memory.
  """
  with reading(step):
    return _read_trainable(step, role, params_shardings, expected)


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
  trainable = restored['trainable']
  return trainable if role is None else trainable[role]
