"""MODEL_DIR, and what an earlier start of a run left there."""

from collections.abc import Mapping
import dataclasses
import tokenize
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.data import dataset_config
from perlhf_jax.runs import recorded_tasks
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

_CONFIG = 'config.gin'
# They say where, how long and how often, and nothing of what is learnt.
_OF_NO_ACCOUNT = frozenset(
  {
    'CHECKPOINT_PERIOD',
    'EVAL_PERIOD',
    'LOG_PERIOD',
    'MESH_SHAPE',
    'MODEL_DIR',
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
  """

  path: epath.Path
  train_steps: int
  step: int | None = None
  metadata: run_metadata.RunMetadata | None = None

  def as_begun(
    self, dataset: dataset_config.DatasetConfig
  ) -> dataset_config.DatasetConfig:
    """Has a run go on with its data as it began.

    Its task is registered by the module that did so then. A run of a version
    that did not put examples together by length does not begin to.

    Raises:
      ConfigError: the module that did so cannot be imported.
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
    return recorded_tasks.with_module(dataset, self.metadata, str(self.path))

  def resume(
    self,
    manager: checkpoint_manager.CheckpointManager,
    state: Any,
    shardings: Any,
    metadata: run_metadata.RunMetadata,
  ) -> Any:
    """Gives the state to train from, and writes config.gin.

    What changed against the configuration of the steps that are there is
    logged, and that configuration kept as config-<step>.gin.

    Args:
      manager: of this folder.
      state: before the first step.
      shardings: of the state.
      metadata: of the run that is to go on.

    Returns:
      The newest state; `state` for a new run.

    Raises:
      CheckpointError: the folder holds another run, or a state that does not
        fit this one's optimizer.
    """
    if self.step is not None:
      run_metadata.check_same(self.metadata, metadata, f'step {self.step}')
    text = operative_config.config_text()
    earlier, changes = self._compare_config(text)
    self._log(changes)
    if self.step is not None:
      abstract = partitioning.abstract_arrays(state, shardings)
      state = manager.restore(self.step, abstract)
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
      earlier = path.read_text()
      try:
        return earlier, operative_config.changes(earlier, text)
      except (SyntaxError, ValueError, tokenize.TokenError) as error:
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
    CheckpointError: it cannot be written to, or as `find`.
  """
  path = step_files.prepare_model_dir(model_dir)
  newest = step_files.newest_intact_step(path)
  with multihost.together():
    return _found(path, train_steps, newest)


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
