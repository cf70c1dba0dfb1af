"""Saves the checkpoints of a run with Orbax, and removes old ones.

A checkpoint is complete or does not exist: Orbax renames its folder into place
last, after the digests are written.
"""

from collections.abc import Mapping
from concurrent import futures
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from perlhf_jax.core import errors
from perlhf_jax.core import typing
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests
from perlhf_jax.training import step_files
from perlhf_jax.training import train_state

# Marks of folders that are incomplete: being saved, or being removed.
_UNFINISHED = '.orbax-checkpoint-tmp'
_REMOVED = '.removed'
# Orbax's default timeout is 20 minutes of wall clock, which can jump forward.
_SAVING_SECONDS = 6 * 3600


class _StateHandler(ocp.PyTreeCheckpointHandler):
  """Writes arrays, and the digests of the files that this process wrote.

  Attributes:
    folder: temporary folder of the step that was saved last.
    number: number of that step.
  """

  folder: epath.Path

  def __init__(self, pool: futures.Executor):
    # Zstd would make trained weights 8% smaller, but triple the time that a
    # processor needs to write and to read them.
    super().__init__(use_compression=False)
    self._pool = pool
    self.number = 0

  async def async_save(self, directory, *args, **kwargs):
    """See Orbax."""
    self.folder = directory.parent
    written = await super().async_save(directory, *args, **kwargs) or []
    if jax.process_count() == 1:
      return written
    # Process 0 digests the other files after every process has done this.
    digested = self._pool.submit(self._digest_own, written, directory)
    return [*written, digested]

  def _digest_own(self, written, directory):
    for future in written:
      future.result()
    step_digests.write_part(
      self.folder, self.number, directory, jax.process_index()
    )


class CheckpointManager:
  """Saves and restores the steps of one run.

  It keeps the newest steps for resuming, and the best steps by the validation
  metric, as the paper selects its reward models (section 4).
  """

  def __init__(
    self,
    model_dir: epath.Path,
    metadata: Mapping[str, Any],
    *,
    keep_best: int = 1,
    keep_latest: int = 2,
  ):
    """Opens MODEL_DIR/checkpoints, and creates it if it does not exist.

    Args:
      model_dir: MODEL_DIR of the run.
      metadata: JSON object to store in each step.
      keep_best: number of steps to keep by the metric given to `save`.
      keep_latest: number of other steps to keep, the newest ones.
    """
    self._root = model_dir / step_files.CHECKPOINTS
    self._metadata = {**metadata, step_damage.HAS_DIGESTS: step_digests.FILE}
    self._keep_best, self._keep_latest = keep_best, keep_latest
    self._is_first = jax.process_index() == 0
    if self._is_first:
      self._root.mkdir(parents=True, exist_ok=True)
      self._remove_unfinished()
    newest = step_files.newest_step(model_dir)
    self._latest = None if newest is None else int(newest.name)
    self._pool = futures.ThreadPoolExecutor(1)
    self._handler = _StateHandler(self._pool)
    items = ocp.DefaultCheckpointHandlerRegistry()
    items.add(step_digests.STATE, ocp.args.PyTreeSave, self._handler)
    for name in step_digests.METADATA, step_digests.METRICS:
      items.add(name, ocp.args.JsonSave, ocp.JsonCheckpointHandler(name))
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(handler_registry=items),
      async_options=ocp.AsyncOptions(
        timeout_secs=_SAVING_SECONDS,
        post_finalization_callback=self._write_digests,
      ),
    )

  def latest_step(self) -> int | None:
    """The newest step, saved or being saved; None if there is none."""
    return self._latest

  def save(self, state: typing.PyTree, metric: float | None) -> None:
    """Saves a step, in the background.

    Args:
      state: pytree to save, with `step` and `trainable`.
      metric: validation metric, higher is better; None if not evaluated.
    """
    step = int(state.step)
    if step == self._latest:
      return
    self._checkpointer.wait_until_finished()
    folder = self._root / str(step)
    if self._is_first:
      self._remove_old()
      if folder.exists():
        step_damage.set_aside(
          folder, 'it is in the way of the step that is saved now'
        )
    self._handler.number = step
    self._checkpointer.save(
      folder,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        metadata=ocp.args.JsonSave(self._metadata),
        metrics=ocp.args.JsonSave(
          {} if metric is None else {step_files.METRIC: metric}
        ),
      ),
    )
    self._latest = step

  def _write_digests(self) -> None:
    # Orbax calls this on process 0 after all processes wrote their parts.
    step_digests.write(self._handler.folder, self._handler.number)

  def restore(self, step: int, abstract_state: typing.PyTree) -> typing.PyTree:
    """Restores a step onto the shardings of `abstract_state`.

    Args:
      step: an intact step, see `step_files.newest_intact_step`.
      abstract_state: shapes, dtypes and shardings.

    Raises:
      CheckpointError: the step has another structure, such as another
        optimizer's state, or cannot be read.
    """
    folder = self._root / str(step)
    wanted = ocp.args.PyTreeRestore(
      item=abstract_state,
      restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
    )
    try:
      with step_files.reading(folder):
        return self._handler.restore(folder / step_digests.STATE, args=wanted)
    except errors.CheckpointError as error:
      if 'structures do not match' not in str(error.__cause__):
        raise
      raise errors.CheckpointError(
        f'The state of step {step} in MODEL_DIR has other parts than this '
        'run: the optimizer was changed, or a part such as a KL controller or '
        'a normalisation was added or removed. Give another MODEL_DIR, or the '
        'configuration that this run started with.'
      ) from error

  def close(self) -> None:
    """Waits for saves in progress."""
    self._checkpointer.wait_until_finished()
    if self._is_first:
      self._remove_old()
    self._checkpointer.close()
    self._pool.shutdown()

  def _remove_old(self) -> None:
    """Removes old steps, as long as enough intact ones remain.

    A damaged step does not count, and is not removed.
    """
    whole = list(filter(_is_whole, step_files.step_folders(self._root)))
    ranks = {step: step_files.rank(step) for step in whole}
    evaluated = [step for step in whole if ranks[step] is not None]
    evaluated.sort(key=ranks.get, reverse=True)
    best = evaluated[: self._keep_best]
    others = [step for step in whole if step not in best]
    for step in others[: max(0, len(others) - self._keep_latest)]:
      try:
        _remove(step)
      except OSError as error:
        logging.warning('%s cannot be removed: %s.', step, error)

  def _remove_unfinished(self) -> None:
    """Removes steps that earlier starts of the run did not complete."""
    finished = {step.name for step in step_files.step_folders(self._root)}
    for path in self._root.iterdir():
      unfinished = _UNFINISHED in path.name or path.name.endswith(_REMOVED)
      # In a bucket, a step has its final name while it is being saved.
      begun = step_files.is_number(path.name) and path.name not in finished
      if unfinished or (begun and path.is_dir()):
        logging.info('Removing %s, which is not complete.', path)
        path.rmtree()


def _is_whole(step: epath.Path) -> bool:
  try:
    return step_damage.damage_of(step) is None
  except errors.CheckpointError:
    return False


def _remove(step: epath.Path) -> None:
  """Removes a step; on a disk no reader sees it half removed."""
  if '://' not in str(step):
    step = step.rename(step.parent / f'{step.name}{_REMOVED}')
  step.rmtree()


def write_weights(
  model_dir: epath.Path,
  step: int,
  trainable: Mapping[str, Any],
  metadata: Mapping[str, Any],
) -> None:
  """Writes a step without optimizer state; all hosts call it together.

  Args:
    model_dir: MODEL_DIR of the step; created if it does not exist.
    step: number of the step.
    trainable: parameters, as `step_files.read_trainable` will read them.
    metadata: JSON object to store in the step.

  Raises:
    OSError: the step cannot be written; MODEL_DIR/checkpoints is removed then.
  """
  state = train_state.TrainState(np.int32(step), trainable, opt_state={})
  try:
    manager = CheckpointManager(model_dir, metadata, keep_best=0)
    manager.save(state, metric=None)
    manager.close()
  # TensorStore raises a ValueError when the disk is full.
  except (OSError, ValueError) as error:
    if jax.process_index() == 0:
      (model_dir / step_files.CHECKPOINTS).rmtree(missing_ok=True)
    raise OSError(str(error)) from error
