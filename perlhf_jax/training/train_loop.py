"""The training loop: updates, metrics, evaluations and checkpoints."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import math
from typing import Annotated, Any, Protocol, runtime_checkable

from absl import logging
from etils import epath
import jax
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import outside
from perlhf_jax.core import strict_json
from perlhf_jax.core import typing
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import metric_writer
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement
from perlhf_jax.training import preemption
from perlhf_jax.training import progress as progress_lib

SUMMARY = 'summary.json'
# How the message begins with which a run ends whose loss is not finite.
DIVERGED = 'The loss at step '

# A TrainState, or another pytree with a `step`.
State = Any


@runtime_checkable
class Step(Protocol):
  """A training step, such as a `compiled_step.CompiledStep`.

  Attributes:
    newly_compiled: whether the last call compiled.
    memory_bytes: bytes per device that the largest program needs.
  """

  newly_compiled: bool
  memory_bytes: int

  def __call__(
    self, state: State, frozen: Mapping[str, Any], batch: typing.Batch
  ) -> tuple[State, Mapping[str, jax.Array]]:
    """Runs one step."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Length of training, and periods of records, evaluations and checkpoints.

  Attributes:
    train_steps: total number of updates, including those before a resume.
    log_period: steps between two training records.
    eval_period: steps between two evaluations.
    checkpoint_period: steps between two checkpoints; each checkpoint is
      evaluated, so that the best can be chosen.
    accumulation_steps: number of gradient accumulation steps per batch.
    keep_best: number of checkpoints to keep by the validation metric.
    keep_latest: number of other checkpoints to keep, the newest ones; if the
      newest is damaged, the run resumes from the one before it.
    seed: seed of initialisation and dropout.
    wandb: whether metrics also go to Weights & Biases, see `wandb_writer`.
  """

  train_steps: Annotated[int, checks.AtLeastOne]
  log_period: Annotated[int, checks.AtLeastOne] = 20
  eval_period: Annotated[int, checks.AtLeastOne] = 100
  checkpoint_period: Annotated[int, checks.AtLeastOne] = 100
  accumulation_steps: Annotated[int, checks.AtLeastOne] = 1
  keep_best: Annotated[int, checks.NotNegative] = 1
  keep_latest: Annotated[int, checks.AtLeastOne] = 2
  seed: Annotated[int, checks.NotNegative] = 0
  wandb: bool = False

  def __post_init__(self):
    checks.check_fields(self)


@dataclasses.dataclass(frozen=True)
class Selection:
  """The validation metric that picks the best checkpoint.

  Attributes:
    metric: name of an evaluation metric.
    maximize: whether higher is better.
  """

  metric: str
  maximize: bool = True

  def value(self, metrics: Mapping[str, float]) -> float:
    """Returns a number, higher is better; -inf if the metric is undefined."""
    value = metrics[self.metric] * (1 if self.maximize else -1)
    return value if math.isfinite(value) else -math.inf


def train(
  config: LoopConfig,
  *,
  model_dir: epath.Path,
  manager: checkpoint_manager.CheckpointManager,
  step: Step,
  state: State,
  frozen: Mapping[str, Any],
  batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
  batch_size: int,
  evaluate: Callable[[State], Mapping[str, float]],
  selection: Selection,
  mesh: partitioning.LogicalMesh,
  summary: Mapping[str, float],
  check: Callable[[int, Mapping[str, float]], None] | None = None,
  describe: Callable[[int, int], Mapping[str, float]] | None = None,
  still_ours: Callable[[], None] = lambda: None,
) -> State:
  """Trains from the step of `state` to `train_steps`.

  Args:
    config: lengths and periods.
    model_dir: folder of metrics and summary.
    manager: saves checkpoints.
    step: `(state, frozen, batch) -> (state, metrics)`.
    state: initial or restored state.
    frozen: weights that the step only reads.
    batches: returns the endless stream of host batches from a step on.
    batch_size: examples per batch, over all hosts.
    evaluate: returns metrics of a state on the evaluation data.
    selection: metric that picks the best checkpoint.
    mesh: the mesh.
    summary: further entries of MODEL_DIR/summary.json, beside throughput,
      memory and devices.
    check: raises a UserError if training must stop because of its metrics;
      called at every record and before every checkpoint. By default it checks
      that loss and gradient are finite.
    describe: returns metrics of the batches from one step up to another, which
      training records contain for the batches since the last record.
    still_ours: raises an OutsideError if `model_dir` no longer belongs to this
      run; called before anything is written.

  Returns:
    The last state.

  Raises:
    UserError: `check` raised it, and the last checkpoint is kept; or `step` or
      `evaluate` got input they cannot use, and the state before that step, or
      the state to evaluate, is saved.
    PreemptedError: this process or another received SIGTERM; the state is
      saved. If a user's function was running, it is interrupted, and the state
      before it is saved.
  """
  check = check or check_finite
  first = int(state.step)
  if first >= config.train_steps:
    logging.info(
      'The run in %s has finished at step %d: there is nothing to do. Give a '
      'larger TRAIN_STEPS to train on, or another MODEL_DIR to start a new '
      'run.',
      *(model_dir, first),
    )
    manager.close()
    still_ours()
    if not _has_summary(model_dir):
      _write_lost_summary(model_dir, first, summary)
    return state
  writer = metric_writer.MetricWriter(model_dir, first, wandb=config.wandb)
  writer.warn_of_gaps(config.log_period, config.eval_period)
  progress = progress_lib.Progress(first, config.train_steps, batch_size)
  stream = batches(first)
  saving = functools.partial(_saving, manager, first, model_dir)
  with preemption.Notice() as notice, _closing(manager, writer, progress):
    pending = None
    for done in range(first + 1, config.train_steps + 1):
      batch = placement.shard_batch(next(stream), mesh)
      notice.ask()
      with saving(state):
        state, metrics = step(state, frozen, batch)
      # Dispatching one step ahead keeps the devices busy; dispatching more
      # would delay the answer to a SIGTERM.
      jax.block_until_ready(pending)
      pending = metrics
      if step.newly_compiled:
        jax.block_until_ready(metrics)
        # The time since the step before the last is not measured.
        progress.resume(done)
      else:
        progress.pause(done - 1)
        progress.resume(done - 1)
      is_last = done == config.train_steps
      records = done % config.log_period == 0 or is_last
      saves = done % config.checkpoint_period == 0 or is_last
      evaluates = done % config.eval_period == 0 or saves
      stops = notice.agreed() and not is_last
      if records or evaluates or stops:
        still_ours()
        metrics = {name: float(value) for name, value in metrics.items()}
        metrics = metric_writer.in_order(metrics)
        progress.pause(done)
        if records:
          if describe is not None:
            # Independent of where the run was interrupted.
            since = (done - 1) // config.log_period * config.log_period
            metrics.update(describe(since, done))
          timing = progress.since_last_record()
          writer.write(done, 'train', {**metrics, **timing})
          progress.report(done, 'train', metrics)
        _check_together(check, done, metrics)
        if evaluates:
          with saving(state):
            evaluated = metric_writer.in_order(evaluate(state))
          still_ours()
          writer.write(done, 'eval', evaluated)
          progress.report(done, 'eval', evaluated)
          if saves:
            manager.save(state, selection.value(evaluated))
        progress.resume(done)
      if stops:
        _save_unmeasured(manager, state, first)
        raise _stopped(done, model_dir)
    progress.pause(config.train_steps)
  still_ours()
  summary = {
    **summary,
    'steps': config.train_steps,
    'examples_per_second': progress.examples_per_second,
    'seconds_per_step': batch_size / progress.examples_per_second
    if progress.examples_per_second
    else None,
    'step_memory_bytes': step.memory_bytes,
    'devices': mesh.mesh.devices.size,
    'device_kind': mesh.mesh.devices.flat[0].device_kind,
  }
  _write_summary(model_dir, summary)
  logging.info('Finished step %d in %s.', config.train_steps, model_dir)
  return state


@contextlib.contextmanager
def _closing(
  manager: checkpoint_manager.CheckpointManager,
  writer: metric_writer.MetricWriter,
  progress: progress_lib.Progress,
) -> Iterator[None]:
  """Closes everything at the end, without waiting for a lost process.

  A save needs all processes. So if this process fails alone, or another one is
  lost, the manager is not closed, since that would wait for the save.
  """
  try:
    yield
  except BaseException as error:
    progress.close()
    is_stopped = isinstance(error, errors.PreemptedError)
    saves = is_stopped or _is_shared(error)
    try:
      _close(manager if saves else None, writer, failed=True)
    except Exception as another:
      if is_stopped:  # The promised save failed.
        raise
      # The first error is raised below.
      told = outside.failure_of(another) or another
      logging.warning('The run cannot be closed as usual: %s', told)
    raise
  progress.close()
  _close(manager, writer, failed=False)


def _close(
  manager: checkpoint_manager.CheckpointManager | None,
  writer: metric_writer.MetricWriter,
  *,
  failed: bool,
) -> None:
  """Waits for the saves first: a service may be slow to take the metrics."""
  try:
    if manager is not None:
      manager.close()
  except BaseException:
    failed = True
    raise
  finally:
    writer.close(failed=failed)


def _is_shared(error: BaseException) -> bool:
  """Whether every process raises this error."""
  return multihost.is_alone() or getattr(error, 'on_every_host', False)


@contextlib.contextmanager
def _saving(manager, first, model_dir, state) -> Iterator[None]:
  """Saves `state` if the block raises a UserError or is preempted."""
  try:
    yield
  except errors.UserError as error:
    _save_unmeasured(manager, state, first, error)
    raise
  except errors.PreemptedError as error:
    _save_unmeasured(manager, state, first, error)
    raise _stopped(int(state.step), model_dir) from error


def _stopped(step: int, model_dir: epath.Path) -> errors.PreemptedError:
  """Returns the error of a run that was stopped after a step and saved."""
  if not step:
    return errors.PreemptedError(
      'stopped by SIGTERM before the first step was done, so there is nothing '
      'to save. Start the same command again to go on.'
    )
  return errors.PreemptedError(
    f'stopped by SIGTERM; step {step} is saved in {model_dir}. Start the same '
    'command again to go on from there.'
  )


def _save_unmeasured(manager, state, first, error=None):
  """Saves an unsaved state without a metric, if all processes can save."""
  if error is not None and not _is_shared(error):
    return
  if int(state.step) not in (first, manager.latest_step()):
    manager.save(state, None)


def _check_together(check, step, metrics):
  """Checks metrics, which are the same on every process; so is an error."""
  try:
    check(step, metrics)
  except errors.UserError as error:
    error.on_every_host = True
    raise


def has_finished(summary: Mapping[str, Any], train_steps: int) -> bool:
  """Returns whether the content of summary.json is of a run of all steps.

  A run that is made longer keeps the summary of its first steps until it ends.
  """
  return summary.get('steps') == train_steps


def _has_summary(model_dir: epath.Path) -> bool:
  try:
    return bool(strict_json.loads((model_dir / SUMMARY).read_text()))
  except (FileNotFoundError, ValueError):
    return False


def _write_summary(
  model_dir: epath.Path, summary: Mapping[str, float | str | None]
) -> None:
  """Writes MODEL_DIR/summary.json, on process 0."""
  if jax.process_index() != 0:
    return
  temporary = model_dir / f'{SUMMARY}.tmp'
  temporary.write_text(strict_json.dumps(summary, indent=2) + '\n')
  temporary.replace(model_dir / SUMMARY)


def _write_lost_summary(
  model_dir: epath.Path, steps: int, summary: Mapping[str, float]
) -> None:
  """Restores the summary of a finished run from its records."""
  if jax.process_index() != 0:
    return
  timing = metric_writer.mean_timing(model_dir, steps)
  logging.warning(
    '%s was lost, and is written again. Its throughput is the mean of the '
    'records in %s; the memory of a step and the devices are no longer known.',
    *(model_dir / SUMMARY, metric_writer.FILE_NAME),
  )
  unknown = dict.fromkeys(('step_memory_bytes', 'devices', 'device_kind'))
  _write_summary(model_dir, {**summary, 'steps': steps, **timing, **unknown})


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
  """Raises a UserError if the loss or its gradient is not finite."""
  loss, grad_norm = metrics['loss'], metrics['grad_norm']
  if math.isfinite(loss) and math.isfinite(grad_norm):
    return
  raise errors.UserError(
    f'{DIVERGED}{step} is {loss} with gradient norm '
    f'{grad_norm}. Checkpoints written before stay as they are. A '
    'lower LEARNING_RATE, a warm-up, or float32 instead of bfloat16 helps; '
    'with --gin.ACCEPT_CHANGES=True the run goes on from the last checkpoint.'
  )
