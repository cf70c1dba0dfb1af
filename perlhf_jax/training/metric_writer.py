"""Metrics of a run: MODEL_DIR/metrics.jsonl, TensorBoard events, perhaps W&B.

A line of metrics.jsonl is `{"step", "split": "train" or "eval", <metric>:
<number>, …}`, with null for an undefined metric. Only the metrics of `TIMING`
depend on the clock. So two runs of one configuration write the same metrics,
and so does a run that is killed and resumed.
"""

from collections.abc import Mapping
import math

from etils import epath
import jax

from perlhf_jax.training import step_log
from perlhf_jax.training import wandb_writer

FILE_NAME = 'metrics.jsonl'

# Metrics of training records that depend on the clock, both since the last
# record: examples per second over all hosts, and seconds per step. They are
# null if every step since then compiled.
TIMING = ('examples_per_second', 'seconds_per_step')

# Metrics to show first; the others follow in the order they are given.
LEADING = (
  'score',
  'judge_score',
  'kl_k1',
  'response_length',
  'loss',
  'pairwise_accuracy',
  'roc_auc',
  'accuracy',
  'token_accuracy',
)


def in_order(metrics: Mapping[str, float]) -> dict[str, float]:
  """Returns metrics with `LEADING` first, the others in their order."""
  leading = {name: metrics[name] for name in LEADING if name in metrics}
  return {**leading, **metrics}


def mean_timing(model_dir: epath.Path, step: int) -> dict[str, float | None]:
  """Returns the means of `TIMING` over a run's records; None without any.

  Args:
    model_dir: MODEL_DIR of the run.
    step: newest step of the run.
  """
  records = step_log.StepLog(model_dir / FILE_NAME, step).records()
  means = {}
  for name in TIMING:
    values = [each[name] for each in records if each.get(name) is not None]
    means[name] = sum(values) / len(values) if values else None
  return means


class MetricWriter:
  """Writes metrics on process 0; does nothing on the others."""

  def __init__(
    self, model_dir: epath.Path, start_step: int, *, wandb: bool = False
  ):
    """Opens the files, and drops records of steps that will be repeated.

    Args:
      model_dir: MODEL_DIR of the run.
      start_step: step that the run resumes from; 0 for a new run.
      wandb: whether to write to Weights & Biases too, see `wandb_writer`.

    Raises:
      ConfigError: `wandb` is set and not installed.
    """
    self._active = jax.process_index() == 0
    if not self._active:
      return
    # Imports TensorFlow, which the rest of training does not need.
    from clu import metric_writers

    self._log = step_log.StepLog(model_dir / FILE_NAME, start_step)
    self._writers = {
      split: metric_writers.SummaryWriter(str(model_dir / 'events' / split))
      for split in ('train', 'eval')
    }
    self._wandb = wandb_writer.WandbWriter(model_dir) if wandb else None

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
      step: number of updates so far.
      split: `train` or `eval`.
      metrics: numbers by name; those that are not finite are written as null.
    """
    if not self._active:
      return
    metrics = {name: float(value) for name, value in metrics.items()}
    self._log.append([{'step': step, 'split': split, **metrics}])
    finite = {name: v for name, v in metrics.items() if math.isfinite(v)}
    self._writers[split].write_scalars(step, finite)
    self._writers[split].flush()
    if self._wandb is not None:
      self._wandb.write(step, split, finite)

  def close(self, *, failed: bool = False) -> None:
    """Closes the event files, and the run on Weights & Biases.

    Args:
      failed: whether the run has not come to its end.
    """
    if self._active:
      for writer in self._writers.values():
        writer.close()
      if self._wandb is not None:
        self._wandb.close(failed=failed)
