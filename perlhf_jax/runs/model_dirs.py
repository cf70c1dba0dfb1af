"""MODEL_DIR, and the files that an earlier start of a run left there."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.checkpoints import run_changes
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.data import dataset_config
from perlhf_jax.runs import recorded_tasks
from perlhf_jax.runs import whole_run
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import finite
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

CONFIG = 'config.gin'
# Macros that do not affect learning: paths, lengths and periods. Fingerprints
# identify the files at the paths.
_OF_NO_ACCOUNT = frozenset(
  {
    'ACCEPT_CHANGES',
    'BASE_CHECKPOINT_PATH',
    'CHECKPOINT_PERIOD',
    'EVAL_PERIOD',
    'INITIAL_CHECKPOINT_PATH',
    'INITIAL_VIT_PATH',
    'LOG_PERIOD',
    'MESH_SHAPE',
    'MODEL_DIR',
    'REWARD_CHECKPOINT',
    'ROLLOUT_PARTS',
    'REWARD_TIME_LIMIT',
    'TRAIN_STEPS',
    'WANDB',
  }
)


@dataclasses.dataclass(frozen=True)
class ModelDir:
  """The folder of a run, and the step from which the run resumes.

  Attributes:
    path: path of the folder.
    train_steps: total number of updates, including those before a resume.
    step: the newest saved step; None for a new run.
    metadata: the metadata of that step.
    check: raises an OutsideError if the folder was deleted or another run took
      it over, see `whole_run.hold`.
  """

  path: epath.Path
  train_steps: int
  step: int | None = None
  metadata: run_metadata.RunMetadata | None = None
  check: Callable[[], None] = lambda: None

  def as_begun(
    self, dataset: dataset_config.DatasetConfig
  ) -> dataset_config.DatasetConfig:
    """Returns a data set that is read as it was when the run began.

    A run that began without grouping examples by length resumes without it.

    Raises:
      ConfigError: a user's module registered the task, and no module is given
        now.
    """
    if self.metadata is None:
      return dataset
    if (
      dataset.length_buckets > 1
      and not self.metadata.data_order[run_metadata.LENGTH_BUCKETS]
    ):
      logging.info(
        'The run in %s started without batches by length, and goes on without '
        'them; LENGTH_BUCKETS is ignored.',
        self.path,
      )
      dataset = dataclasses.replace(dataset, length_buckets=0)
    recorded_tasks.check_module(dataset, self.metadata, str(self.path))
    return dataset

  def described(
    self, metadata: run_metadata.RunMetadata, *, accept_changes: bool
  ) -> run_metadata.RunMetadata:
    """Returns the metadata of the coming steps.

    Args:
      metadata: the metadata of the run as it is started now.
      accept_changes: whether to accept other data, rewards or settings.

    Raises:
      CheckpointError: the folder holds another run.
    """
    if self.step is None:
      return metadata
    return run_changes.going_on(
      self.metadata,
      metadata,
      self.path / step_files.CHECKPOINTS / str(self.step),
      accept=accept_changes,
    )

  def resume(
    self,
    manager: checkpoint_manager.CheckpointManager,
    state: Any,
    shardings: Any,
  ) -> Any:
    """Returns the state to train from, and writes config.gin.

    Logs how the configuration differs from the existing config.gin, and keeps
    the existing file as config-<step>.gin.

    Args:
      manager: checkpoint manager of this folder.
      state: the state before the first step.
      shardings: the shardings of the state.

    Returns:
      The newest state; `state` for a new run.

    Raises:
      CheckpointError: the saved state does not fit this run's optimizer, or has
        numbers that are not finite.
    """
    text = operative_config.config_text()
    earlier, changes = self._compare_config(text)
    self._log(changes)
    if self.step is not None:
      abstract = partitioning.abstract_arrays(state, shardings)
      state = manager.restore(self.step, abstract)
      finite.check(
        finite.not_finite(state), f'Step {self.step} in MODEL_DIR {self.path}'
      )
      if self.step < self.train_steps:
        logging.info(
          'Going on from step %d to step %d.', self.step, self.train_steps
        )
    if self.step != self.train_steps and (changes or earlier is None):
      self._write_config(text, earlier)
    return state

  def _compare_config(self, text: str) -> tuple[str | None, dict[str, str]]:
    """Reads config.gin before any process writes it, and finds the changes."""
    path = self.path / CONFIG
    with multihost.together():
      if not path.exists():
        return None, {}
      try:
        earlier = path.read_text()
        return earlier, operative_config.changes(earlier, text)
      except (ValueError, errors.ConfigError) as error:
        raise errors.CheckpointError(
          f'{path}, the configuration of the steps in MODEL_DIR, cannot be '
          f'read as gin ({error}). Correct it, or move it away to go on '
          'without it.'
        ) from error

  def _write_config(self, text: str, earlier: str | None) -> None:
    if jax.process_index() != 0:
      return
    kept = self.path / f'config-{self.step}.gin'
    # An existing copy made the steps up to this one; later steps are lost.
    if earlier is not None and self.step is not None and not kept.exists():
      kept.write_text(earlier)
    # A kill leaves either the old file or the new one.
    temporary = self.path / f'{CONFIG}.tmp'
    temporary.write_text(text)
    temporary.replace(self.path / CONFIG)

  def _log(self, changes: Mapping[str, str]) -> None:
    """Logs the changes of config.gin."""
    matters = {n: c for n, c in changes.items() if n not in _OF_NO_ACCOUNT}
    others = {n: c for n, c in changes.items() if n in _OF_NO_ACCOUNT}
    if others:
      logging.info('Changed since the last start: %s.', _listed(others, ', '))
    if not matters:
      return
    if self.step is None:
      what = 'The last start saved no step, so the run begins again. Changed'
    elif self.step == self.train_steps:
      what = f'The run finished at step {self.step}, before this was changed'
    else:
      what = (
        f'The configuration changes at step {self.step}; the earlier one is '
        f'kept as config-{self.step}.gin. Changed'
      )
    logging.warning('%s:\n  %s', what, _listed(matters, '\n  '))


def _listed(changes: Mapping[str, str], separator: str) -> str:
  return separator.join(f'{n}: {change}' for n, change in changes.items())


def prepare(model_dir: str, train_steps: int) -> ModelDir:
  """Makes MODEL_DIR, or finds the step in it to resume from.

  Sets aside newer steps that are damaged. All hosts must call it.

  Args:
    model_dir: MODEL_DIR of the run.
    train_steps: total number of updates.

  Raises:
    CheckpointError: MODEL_DIR cannot be written, another run uses it, or see
      `find`.
  """
  path = step_files.prepare_model_dir(model_dir)
  check = whole_run.hold(path)
  newest = step_files.newest_intact_step(path)
  with multihost.together():
    found = _found(path, train_steps, newest)
  return dataclasses.replace(found, check=check)


def find(path: epath.Path, train_steps: int) -> ModelDir:
  """Finds the run in a folder, which need not exist.

  Changes nothing in the folder, and reads no arrays.

  Args:
    path: MODEL_DIR.
    train_steps: total number of updates.

  Raises:
    CheckpointError: the newest step is above `train_steps`, all steps are
      damaged, or the folder holds a converted model, which cannot resume.
  """
  return _found(path, train_steps, step_files.newest_step(path))


def _found(
  path: epath.Path, train_steps: int, newest: epath.Path | None
) -> ModelDir:
  if newest is None:
    return ModelDir(path, train_steps)
  step = int(newest.name)
  if step > train_steps:
    raise errors.CheckpointError(
      f'TRAIN_STEPS is {train_steps}, but MODEL_DIR {path} already '
      f'holds step {step}. Give TRAIN_STEPS={step} or more to go on with '
      'that run, or another MODEL_DIR to begin a new one.'
    )
  fields = step_files.read_metadata(newest)
  metadata = run_metadata.from_json(fields, str(newest))
  if metadata.made_of is not None:
    raise errors.CheckpointError(
      f'MODEL_DIR {path} holds a model that perlhf convert or perlhf '
      'average made, and no run to go on with. Give another MODEL_DIR, and '
      'this one as INITIAL_CHECKPOINT_PATH.'
    )
  return ModelDir(path, train_steps, step, metadata)
