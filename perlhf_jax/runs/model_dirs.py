"""MODEL_DIR, and what an earlier start of a run left there."""

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

_CONFIG = 'config.gin'
# They say where, how long and how often, and nothing of what is learnt; what
# lies at a path is known by its fingerprint.
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
  }
)


@dataclasses.dataclass(frozen=True)
class ModelDir:
  """Where a run goes, and from where it goes on.

  Attributes:
    path: of the folder.
    train_steps: updates in all, those before a resume included.
    step: the newest that is saved there; None for a new run.
    metadata: of that step.
    check: raises an OutsideError when the folder is no longer this run's, see
      `whole_run.hold`.
  """

  path: epath.Path
  train_steps: int
  step: int | None = None
  metadata: run_metadata.RunMetadata | None = None
  check: Callable[[], None] = lambda: None

  def as_begun(
    self, dataset: dataset_config.DatasetConfig
  ) -> dataset_config.DatasetConfig:
    """Has a run go on with its data as it began.

    A run of a version that did not put examples together by length does not
    begin to.

    Raises:
      ConfigError: a module of the user's registered the task then, and none is
        given now.
    """
    if self.metadata is None:
      return dataset
    if (
      dataset.length_buckets > 1
      and not self.metadata.data_order[run_metadata.LENGTH_BUCKETS]
    ):
      logging.info(
        'The run in %s began without batches by length, and goes on so, '
        'whatever LENGTH_BUCKETS is.',
        self.path,
      )
      dataset = dataclasses.replace(dataset, length_buckets=0)
    recorded_tasks.check_module(dataset, self.metadata, str(self.path))
    return dataset

  def described(
    self, metadata: run_metadata.RunMetadata, *, accept_changes: bool
  ) -> run_metadata.RunMetadata:
    """Returns what the coming steps say of themselves.

    Args:
      metadata: of the run as it is started now.
      accept_changes: whether it may go on with other data, rewards or settings.

    Raises:
      CheckpointError: the folder holds another run.
    """
    if self.step is None:
      return metadata
    return run_changes.going_on(
      self.metadata, metadata, self.step, accept=accept_changes
    )

  def resume(
    self,
    manager: checkpoint_manager.CheckpointManager,
    state: Any,
    shardings: Any,
  ) -> Any:
    """Gives the state to train from, and writes config.gin.

    What changed against the configuration of the steps that are there is
    logged, and that configuration kept as config-<step>.gin.

    Args:
      manager: of this folder.
      state: before the first step.
      shardings: of the state.

    Returns:
      The newest state; `state` for a new run.

    Raises:
      CheckpointError: the folder holds a state that does not fit this run's
        optimizer, or that has numbers that are not finite.
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
    """Reads config.gin, before any process writes it, and what changes."""
    path = self.path / _CONFIG
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
    # One that is there made the steps up to this one; what came since is lost.
    if earlier is not None and self.step is not None and not kept.exists():
      kept.write_text(earlier)
    # A kill leaves the one or the other.
    temporary = self.path / f'{_CONFIG}.tmp'
    temporary.write_text(text)
    temporary.replace(self.path / _CONFIG)

  def _log(self, changes: Mapping[str, str]) -> None:
    """Says what is not as it was in config.gin."""
    matters = {n: c for n, c in changes.items() if n not in _OF_NO_ACCOUNT}
    others = {n: c for n, c in changes.items() if n in _OF_NO_ACCOUNT}
    if others:
      logging.info('Changed since the last start: %s.', _listed(others, ', '))
    if not matters:
      return
    if self.step is None:
      what = 'This run begins anew, for the last start saved no step. Changed'
    elif self.step == self.train_steps:
      what = f'The run finished at step {self.step}, before this was changed'
    else:
      what = (
        f'From step {self.step} on the configuration is another one than '
        f'before, which is kept as config-{self.step}.gin. Changed'
      )
    logging.warning('%s:\n  %s', what, _listed(matters, '\n  '))


def _listed(changes: Mapping[str, str], separator: str) -> str:
  return separator.join(f'{n}: {change}' for n, change in changes.items())


def prepare(model_dir: str, train_steps: int) -> ModelDir:
  """Makes MODEL_DIR, or finds what is there to go on from.

  Damaged steps that are newer are set aside. On several hosts all call it.

  Args:
    model_dir: of the run.
    train_steps: updates in all.

  Raises:
    CheckpointError: it cannot be written to, another run is at work there, or
      as `find`.
  """
  path = step_files.prepare_model_dir(model_dir)
  check = whole_run.hold(path)
  newest = step_files.newest_intact_step(path)
  with multihost.together():
    found = _found(path, train_steps, newest)
  return dataclasses.replace(found, check=check)


def find(path: epath.Path, train_steps: int) -> ModelDir:
  """Finds what an earlier start left in a folder, which need not be there.

  It changes nothing there, and reads no arrays.

  Args:
    path: MODEL_DIR.
    train_steps: updates in all.

  Raises:
    CheckpointError: it holds more steps than are wanted, no run, or damaged
      steps only.
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
      f'MODEL_DIR {path} holds a model that perlhf convert made, and no run to '
      'go on with. Give another MODEL_DIR, and this one as '
      'INITIAL_CHECKPOINT_PATH.'
    )
  return ModelDir(path, train_steps, step, metadata)
