"""Metrics of a run: MODEL_DIR/metrics.jsonl, and TensorBoard events.

A line of metrics.jsonl is `{"step", "split": "train" or "eval", <metric>:
<number>, …}`. It holds nothing that depends on the clock, so two runs of one
configuration write the same file, and a run that was killed and resumed
writes the file that it would have written.
"""

from collections.abc import Mapping
import math

from etils import epath
import jax

from perlhf_jax.training import step_log

FILE_NAME = 'metrics.jsonl'


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

  def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Appends one record.

    Args:
      step: updates made so far.
      split: `train` or `eval`.
      metrics: finite numbers; others are written as null.
    """
    if not self._active:
      return
    clean = {
      name: float(value) if math.isfinite(value) else None
      for name, value in metrics.items()
    }
    self._log.append([{'step': step, 'split': split, **clean}])
    self._writers[split].write_scalars(
      step, {name: v for name, v in clean.items() if v is not None}
    )
    self._writers[split].flush()

  def close(self) -> None:
    """Closes the event files."""
    if self._active:
      for writer in self._writers.values():
        writer.close()
