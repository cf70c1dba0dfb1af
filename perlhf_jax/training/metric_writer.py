"""Metrics of a run: MODEL_DIR/metrics.jsonl, and TensorBoard events.

A line of metrics.jsonl is `{"step", "split": "train" or "eval", <metric>:
<number>, …}`. It holds nothing that depends on the clock, so two runs of one
configuration write the same file, and a run that was killed and resumed
writes the file that it would have written.
"""

from collections.abc import Mapping
import json
import math

from etils import epath
import jax

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

    self._path = model_dir / FILE_NAME
    self._lines = [
      line
      for line in read_lines(self._path)
      if json.loads(line)['step'] <= start_step
    ]
    self._rewrite()
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
    line = json.dumps({'step': step, 'split': split, **clean})
    self._lines.append(line)
    if '://' in str(self._path):
      self._rewrite()  # Objects in a bucket cannot be appended to.
    else:
      with self._path.open('a') as file:
        file.write(line + '\n')
    self._writers[split].write_scalars(
      step, {name: v for name, v in clean.items() if v is not None}
    )
    self._writers[split].flush()

  def _rewrite(self) -> None:
    temporary = self._path.with_suffix('.jsonl.tmp')
    temporary.write_text(''.join(line + '\n' for line in self._lines))
    temporary.replace(self._path)

  def close(self) -> None:
    """Closes the event files."""
    if self._active:
      for writer in self._writers.values():
        writer.close()


def read_lines(path: epath.Path) -> list[str]:
  """Reads whole lines; a last one that a kill cut short is left out."""
  if not path.exists():
    return []
  lines = path.read_text().split('\n')
  return [line for line in lines[:-1] if line]
