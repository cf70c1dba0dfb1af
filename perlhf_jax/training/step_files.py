"""Checkpoints of a run, by Orbax.

MODEL_DIR/checkpoints/<step>/ holds the item `state` (a `TrainState`, or the
`PolicyState` of reinforcement learning: for LoRA the adapter, heads and
optimizer, never the frozen backbone) and the item `metadata` (JSON: everything
that is needed to use the step without the configuration that made it, see
`checkpoints.run_metadata`). A step is complete or it does not exist: Orbax
renames it into place last.
"""

from collections.abc import Mapping
import contextlib
import math
import os
import time
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.core import typing
from perlhf_jax.training import multihost
from perlhf_jax.training import stored_arrays
from perlhf_jax.training import train_state

_CHECKPOINTS = 'checkpoints'
_METRIC = 'selection'
BEST = 'best'
_SHARING_SECONDS = 30
# Orbax gives up a save after 20 minutes by the clock, which may be set forward.
_SAVING_SECONDS = 6 * 3600
_policy = ocp.checkpoint_managers


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


class CheckpointManager:
  """Saves and restores the steps of one run.

  The newest step is kept for resuming, and the best ones by the validation
  metric, as the paper selects its reward models (section 4).
  """

  def __init__(
    self,
    model_dir: epath.Path,
    metadata: Mapping[str, Any],
    *,
    keep_best: int = 1,
    keep_latest: int = 1,
  ):
    """Opens MODEL_DIR/checkpoints, making it if need be.

    Args:
      model_dir: of the run.
      metadata: JSON object to store in each step.
      keep_best: steps to keep by the metric given to `save`, highest first.
      keep_latest: steps to keep by age.
    """
    self._metadata = dict(metadata)
    policies = [_policy.LatestN(keep_latest)]
    if keep_best:
      policies.append(
        _policy.BestN(
          get_metric_fn=_rank,
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      model_dir / _CHECKPOINTS,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_policy.AnyPreservationPolicy(policies),
        # Orbax stores metrics only where a best step is asked for.
        best_fn=_rank,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(timeout_secs=_SAVING_SECONDS),
      ),
    )

  def latest_step(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, state: typing.PyTree, metric: float | None) -> None:
    """Saves a step, in the background.

    Args:
      state: what to save; a pytree with `step` and `trainable`.
      metric: higher is better; None if this step was not evaluated.
    """
    self._manager.save(
      int(state.step),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        metadata=ocp.args.JsonSave(self._metadata),
      ),
      # Orbax warns of a step without metrics, though it may be meant so.
      metrics={} if metric is None else {_METRIC: metric},
    )

  def restore(self, step: int, abstract_state: typing.PyTree) -> typing.PyTree:
    """Restores a step onto the shardings of `abstract_state`.

    Args:
      step: a complete step.
      abstract_state: shapes, dtypes and shardings.

    Raises:
      CheckpointError: the step has other parts, such as another optimizer's.
    """
    wanted = ocp.args.StandardRestore(abstract_state)
    try:
      return self._manager.restore(step, args=ocp.args.Composite(state=wanted))[
        'state'
      ]
    except ValueError as error:
      if 'structures do not match' not in str(error):
        raise
      raise errors.CheckpointError(
        f'The state of step {step} in MODEL_DIR has other parts than this run '
        'has: the optimizer is another one, or a KL controller, a '
        'normalisation or the like came or went. Give another MODEL_DIR, or '
        'the configuration that began this one.'
      ) from error

  def close(self) -> None:
    """Waits for saves under way."""
    self._manager.wait_until_finished()
    self._manager.close()


def _rank(metrics: Mapping[str, float]) -> tuple[bool, float]:
  """Orders steps by their metric; those that were not evaluated come first."""
  return _METRIC in metrics, metrics.get(_METRIC, -math.inf)


def find_step(path: str) -> epath.Path | None:
  """Resolves a path to one step's folder.

  Args:
    path: MODEL_DIR (its newest step), MODEL_DIR/checkpoints/<step>, or
      MODEL_DIR/checkpoints/best (the best by the validation metric).

  Returns:
    The step's folder, absolute; None if the path is no checkpoint of ours.

  Raises:
    CheckpointError: it is one, but has no such step.
  """
  folder = absolute(path)
  if (folder / 'metadata').is_dir() and (folder / 'state').is_dir():
    return folder
  if folder.parent.name == _CHECKPOINTS and folder.name.isdigit():
    if folder.parent.is_dir():
      raise errors.CheckpointError(
        f'{folder.parent} has no complete step {folder.name}.'
      )
  wants_best = folder.name == BEST and folder.parent.name == _CHECKPOINTS
  root = folder.parent if wants_best else folder / _CHECKPOINTS
  if not root.is_dir():
    return None
  steps = _complete_steps(root)
  if not steps:
    raise errors.CheckpointError(f'{root} holds no complete step yet.')
  if not wants_best:
    return root / str(steps[-1])
  metrics = {step: _selection_metric(root / str(step)) for step in steps}
  metrics = {step: m for step, m in metrics.items() if m is not None}
  if not metrics:
    raise errors.CheckpointError(
      f'No step in {root} was evaluated, so none is the best; name a step.'
    )
  return root / str(max(metrics, key=lambda step: (metrics[step], -step)))


def newest_step(model_dir: epath.Path) -> epath.Path | None:
  """Returns the folder of the newest complete step; None if there is none."""
  root = model_dir / _CHECKPOINTS
  steps = _complete_steps(root) if root.is_dir() else []
  return root / str(steps[-1]) if steps else None


def _complete_steps(root: epath.Path) -> list[int]:
  return sorted(
    int(p.name)
    for p in root.iterdir()
    if p.name.isdigit() and (p / 'state').is_dir()
  )


def _selection_metric(step: epath.Path) -> float | None:
  if not (step / 'metrics').exists():
    return None
  metrics = _read_json(step / 'metrics')
  value = metrics.get(_METRIC) if isinstance(metrics, dict) else None
  return float(value) if isinstance(value, int | float) else None


def model_dir_of(step: epath.Path) -> epath.Path:
  """Returns the MODEL_DIR of a step's folder.

  A folder that was copied out of its MODEL_DIR stands for one itself.
  """
  is_at_home = step.parent.name == _CHECKPOINTS
  return step.parent.parent if is_at_home else step


def read_metadata(step: epath.Path) -> dict[str, Any]:
  """Reads the metadata of a step's folder.

  Raises:
    CheckpointError: it is missing, damaged, or too large to be true.
  """
  return _read_json(step / 'metadata')


def _read_json(item: epath.Path) -> Any:
  """Reads what Orbax wrote of a JSON object: a file in a folder of its name."""
  path = item / item.name
  try:
    return strict_json.loads(
      plain_files.read(path, errors.CheckpointError), allow_nan=True
    )
  except (OSError, ValueError) as error:
    raise errors.CheckpointError(
      f'{path} cannot be read as JSON ({error}). Copy the checkpoint again, or '
      'use another step.'
    ) from error


def write_weights(
  model_dir: epath.Path,
  step: int,
  trainable: Mapping[str, Any],
  metadata: Mapping[str, Any],
) -> None:
  """Writes a step that holds no optimizer; on all hosts together.

  Args:
    model_dir: in which the step is to be; there, or to be made.
    step: its number.
    trainable: what `read_trainable` is to read.
    metadata: JSON object to store in it.

  Raises:
    OSError: it cannot be written; nothing is left of it then.
  """
  state = train_state.TrainState(np.int32(step), trainable, opt_state={})
  try:
    manager = CheckpointManager(model_dir, metadata, keep_best=0)
    manager.save(state, metric=None)
    manager.close()
  # TensorStore makes a ValueError of a full disk.
  except (OSError, ValueError) as error:
    if jax.process_index() == 0:
      (model_dir / _CHECKPOINTS).rmtree(missing_ok=True)
    raise OSError(str(error)) from error


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
    CheckpointError: the arrays are not the expected ones, or do not fit into
      the memory that is free; none was read then.
  """
  stored_arrays.check_index(step / 'state')
  # The bare handler: a Checkpointer looks for metadata of a whole step here.
  handler = ocp.PyTreeCheckpointHandler()
  wanted = handler.metadata(step / 'state').tree.get('trainable', {})
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
    step / 'state',
    args=ocp.args.PyTreeRestore(
      item=nest(wanted), restore_args=nest(restore_args), partial_restore=True
    ),
  )
  handler.close()
  trainable = restored['trainable']
  return trainable if role is None else trainable[role]
