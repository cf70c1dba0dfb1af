"""The loop: batches in, updates, metrics, evaluations and checkpoints out."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import math
from typing import Annotated, Any, Protocol, runtime_checkable

from absl import logging
from etils import epath
import jax
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.core import typing
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import metric_writer
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement
from perlhf_jax.training import preemption
from perlhf_jax.training import progress as progress_lib

# A TrainState, or another pytree with a `step`.
State = Any


@runtime_checkable
class Step(Protocol):
  """What the loop repeats, such as a `compiled_step.CompiledStep`.

  Attributes:
    newly_compiled: whether the last call compiled.
    memory_bytes: what the largest program needs on a device.
  """

  newly_compiled: bool
  memory_bytes: int

  def __call__(
    self, state: State, frozen: Mapping[str, Any], batch: typing.Batch
  ) -> tuple[State, Mapping[str, jax.Array]]:
    """Makes one step."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long to train and how often to look.

  Attributes:
    train_steps: updates in all, those before a resume included.
    log_period: steps between two training records.
    eval_period: steps between two evaluations.
    checkpoint_period: steps between two checkpoints; each is evaluated, so
      that the best can be chosen.
    accumulation_steps: parts in which a batch is differentiated.
    keep_best: checkpoints to keep by the validation metric.
    keep_latest: checkpoints to keep by age, beside those: where the newest is
      damaged, the run goes on from the one before it.
    seed: of initialisation and dropout.
  """

  train_steps: Annotated[int, checks.AtLeastOne]
  log_period: Annotated[int, checks.AtLeastOne] = 20
  eval_period: Annotated[int, checks.AtLeastOne] = 100
  checkpoint_period: Annotated[int, checks.AtLeastOne] = 100
  accumulation_steps: Annotated[int, checks.AtLeastOne] = 1
  keep_best: Annotated[int, checks.NotNegative] = 1
  keep_latest: Annotated[int, checks.AtLeastOne] = 2
  seed: Annotated[int, checks.NotNegative] = 0

  def __post_init__(self):
    checks.check_fields(self)


@dataclasses.dataclass(frozen=True)
class Selection:
  """The validation metric that picks the best checkpoint.

  Attributes:
    metric: name of an evaluation metric.
    maximize: whether more is better.
  """

  metric: str
  maximize: bool = True

  def value(self, metrics: Mapping[str, float]) -> float:
    """Returns a number of which more is better; -inf where undefined."""
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
) -> State:
  """Trains until `train_steps`, from wherever `state` stands.

  Args:
    config: lengths and periods.
    model_dir: where metrics and the summary go.
    manager: saves checkpoints.
    step: `(state, frozen, batch) -> (state, metrics)`.
    state: fresh or restored.
    frozen: weights that the step reads only.
    batches: gives the endless stream of host batches from a step on.
    batch_size: examples of a batch, over all hosts.
    evaluate: metrics of a state on the evaluation data.
    selection: what picks the best checkpoint.
    mesh: the mesh.
    summary: what MODEL_DIR/summary.json is to hold beside throughput and
      memory.
    check: raises a UserError on metrics with which training must not go on,
      at every record and before every checkpoint; by default on a loss or
      gradient that is not finite.
    describe: metrics of the batches from a step on, up to another one, which
      training records have for those since the last record.

  Returns:
    The last state.

  Raises:
    UserError: by `check`, with the last checkpoint kept; or by `step` or
      `evaluate`, of input that they cannot use: the state before that step,
      or the one that was to be evaluated, is saved.
    PreemptedError: SIGTERM told this process, or another, to stop; the state
      is saved.
  """
  check = check or check_finite
  first = int(state.step)
  if first >= config.train_steps:
    logging.info(
      'The run in %s has finished at step %d: there is nothing to do. Give a '
      'larger TRAIN_STEPS to train on, or another MODEL_DIR to begin anew.',
      *(model_dir, first),
    )
    manager.close()
    return state
  writer = metric_writer.MetricWriter(model_dir, first)
  progress = progress_lib.Progress(first, config.train_steps, batch_size)
  stream = batches(first)
  with preemption.Notice() as notice, _closing(manager, writer, progress):
    pending = None
    for done in range(first + 1, config.train_steps + 1):
      batch = placement.shard_batch(next(stream), mesh)
      notice.ask()
      try:
        state, metrics = step(state, frozen, batch)
      except errors.UserError as error:
        _save_unmeasured(manager, state, first, error)
        raise
      # One step ahead keeps the devices busy; from further ahead a notice would
      # be followed too late.
      jax.block_until_ready(pending)
      pending = metrics
      if step.newly_compiled:
        jax.block_until_ready(metrics)
        # What went by since the step before the last is not measured.
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
        metrics = {name: float(value) for name, value in metrics.items()}
        metrics = metric_writer.in_order(metrics)
        progress.pause(done)
        if records:
          if describe is not None:
            # The same wherever a run was interrupted.
            since = (done - 1) // config.log_period * config.log_period
            metrics.update(describe(since, done))
          timing = progress.since_last_record()
          writer.write(done, 'train', {**metrics, **timing})
          progress.report(done, 'train', metrics)
        _check_together(check, done, metrics)
        if evaluates:
          try:
            evaluated = metric_writer.in_order(evaluate(state))
          except errors.UserError as error:
            _save_unmeasured(manager, state, first, error)
            raise
          writer.write(done, 'eval', evaluated)
          progress.report(done, 'eval', evaluated)
          if saves:
            manager.save(state, selection.value(evaluated))
        progress.resume(done)
      if stops:
        _save_unmeasured(manager, state, first)
        raise errors.PreemptedError(
          f'stopped by SIGTERM; step {done} is saved in {model_dir}. Started '
          'again, the same command goes on from there.'
        )
    progress.pause(config.train_steps)
  summary = {
    **summary,
    'steps': config.train_steps,
    'examples_per_second': progress.examples_per_second,
    'seconds_per_step': batch_size / progress.examples_per_second
    if progress.examples_per_second
    else None,
    'step_memory_bytes': step.memory_bytes,
  }
  if jax.process_index() == 0:
    text = strict_json.dumps(summary, indent=2)
    (model_dir / 'summary.json').write_text(text + '\n')
  logging.info('Finished step %d in %s.', config.train_steps, model_dir)
  return state


@contextlib.contextmanager
def _closing(
  manager: checkpoint_manager.CheckpointManager,
  writer: metric_writer.MetricWriter,
  progress: progress_lib.Progress,
) -> Iterator[None]:
  """Closes everything in the end, without waiting for a process that is gone.

  A save is complete when all processes have done their part. The others do not
  get there when this process alone fails, or when one of them is lost.
  """
  together = True
  try:
    yield
  except errors.PreemptedError:
    raise
  except BaseException as error:
    together = _is_shared(error)
    raise
  finally:
    progress.close()
    writer.close()
    if together:
      manager.close()


def _is_shared(error: BaseException) -> bool:
  """Whether every process has this error."""
  return multihost.is_alone() or getattr(error, 'on_every_host', False)


def _save_unmeasured(manager, state, first, error=None):
  """Saves a state that would be lost, if all processes can."""
  if error is not None and not _is_shared(error):
    return
  if int(state.step) not in (first, manager.latest_step()):
    manager.save(state, None)


def _check_together(check, step, metrics):
  """Checks metrics; they are the same on every process, and so is an error."""
  try:
    check(step, metrics)
  except errors.UserError as error:
    error.on_every_host = True
    raise


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
  """Raises a UserError if the loss or its gradient is not finite."""
  loss, grad_norm = metrics['loss'], metrics['grad_norm']
  if math.isfinite(loss) and math.isfinite(grad_norm):
    return
  raise errors.UserError(
    f'The loss at step {step} is {loss} with gradient norm '
    f'{grad_norm}. Checkpoints written before stay as they are. A '
    'lower LEARNING_RATE, a warm-up, or float32 instead of bfloat16 helps.'
  )
