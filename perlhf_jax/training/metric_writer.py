"""Metrics of a run: MODEL_DIR/metrics.jsonl, and TensorBoard events.

A line of metrics.jsonl is `{"step", "split": "train" or "eval", <metric>:
<number>, …}`, with null for a metric that is undefined. Nothing but `TIMING`
depends on the clock, so two runs of one configuration write the same metrics,
and a run that was killed and resumed writes those that it would have written.
"""

from collections.abc import Mapping
import math

from etils import epath
import jax

from perlhf_jax.training import step_log

FILE_NAME = 'metrics.jsonl'

# Metrics of training records that the clock decides, since the last record:
# examples of all hosts per second, and seconds of a step. They are null where
# every step since then has compiled.
TIMING = ('examples_per_second', 'seconds_per_step')

# What a reader looks for first; other metrics follow as they come.
LEADING = (
  'score',
  'judge_score',
  'kl',
  'response_length',
  'loss',
  'pairwise_accuracy',
  'roc_auc',
  'accuracy',
  'token_accuracy',
)


def in_order(metrics: Mapping[str, float]) -> dict[str, float]:
  """Returns metrics with those of `LEADING` first, the others as they come."""
  leading = {name: metrics[name] for name in LEADING if name in metrics}
  return {**leading, **metrics}


def mean_timing(model_dir: epath.Path, step: int) -> dict[str, float | None]:
  """Returns the means of `TIMING` over the records of a run; None without any.

  Args:
    model_dir: of a run.
    step: the newest of the run.
  """
  records = step_log.StepLog(model_dir / FILE_NAME, step).records()
  means = {}
  for name in TIMING:
    values = [each[name] for each in records if each.get(name) is not None]
    means[name] = sum(values) / len(values) if values else None
  return means


class MetricWriter:
  """Writes metrics on the first process; on the others it does nothing."""

  def __init__(self, model_dir: epath.Path, start_step: int):
    """Opens the files, dropping records of steps that will be made again.

    Args:
      model_dir: of the run.
      start_step: step that the run goes on from; 0 for a new one.
    """
    self._active = jax.process_index() == 0
    if not self._active:
      return
    # Imports TensorFlow, which the rest of training does without.
    from clu import metric_writers

    self._log = step_log.StepLog(model_dir / FILE_NAME, start_step)
    self._writers = {
      split: metric_writers.SummaryWriter(str(model_dir / 'events' / split))
      for split in ('train', 'eval')
    }

  def warn_of_gaps(self, log_period: int, eval_period: int) -> None:
    """Warns of records of earlier starts that are not there any more.

    Args:
      log_period: steps between two training records.
      eval_period: steps between two evaluations.
    """
    if self._active:
      self._log.warn_of_gaps(log_period, split='train')
      self._log.warn_of_gaps(eval_period, split='eval')

  def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Appends one record.

    Args:
      step: updates made so far.
      split: `train` or `eval`.
      metrics: finite numbers; others are written as null.
    """
    if not self._active:
      return
    metrics = {name: float(value) for name, value in metrics.items()}
    self._log.append([{'step': step, 'split': split, **metrics}])
    self._writers[split].write_scalars(
      step, {name: v for name, v in metrics.items() if math.isfinite(v)}
    )
    self._writers[split].flush()

  def close(self) -> None:
    """Closes the event files."""
    if self._active:
      for writer in self._writers.values():
        writer.close()
