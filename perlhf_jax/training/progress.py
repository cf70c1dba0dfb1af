"""Progress of a long run: a bar on a terminal, plain lines in a log."""

from collections.abc import Mapping
import math
import sys
import time

from absl import logging
from etils import epy
import jax

from perlhf_jax.training import metric_writer

with epy.lazy_imports():
  import tqdm  # Not needed on a machine without a terminal.

# Number of metrics shown beside the bar, which has one line.
_SHOWN_ON_BAR = 4


class Progress:
  """Counts steps, and measures throughput without compilation and evaluation.

  Attributes:
    examples_per_second: mean over the timed steps so far; 0 before the second.
  """

  def __init__(self, start_step: int, total_steps: int, batch_size: int):
    """Starts at a step.

    Args:
      start_step: step that the run resumes from.
      total_steps: step at which the run ends.
      batch_size: examples per step, over all hosts.
    """
    self._total = total_steps
    self._batch_size = batch_size
    self._seconds = 0.0
    self._steps = 0
    self._last = 0.0, 0
    self._since: float | None = None
    self._counted_step = start_step
    self._bar = None
    if sys.stderr.isatty() and jax.process_index() == 0:
      self._bar = tqdm.tqdm(
        total=total_steps, initial=start_step, unit='step', dynamic_ncols=True
      )

  @property
  def examples_per_second(self) -> float:
    """Examples per second over the timed steps so far."""
    if not self._seconds:
      return 0.0
    return self._steps * self._batch_size / self._seconds

  def since_last_record(self) -> dict[str, float]:
    """Returns `metric_writer.TIMING` of the steps since the last call.

    The clock must be stopped; NaN where no step was timed.
    """
    seconds, steps = self._seconds - self._last[0], self._steps - self._last[1]
    self._last = self._seconds, self._steps
    rate = steps * self._batch_size / seconds if seconds else math.nan
    each = seconds / steps if steps else math.nan
    return dict(zip(metric_writer.TIMING, (rate, each), strict=True))

  def resume(self, step: int) -> None:
    """Starts the clock; every step before `step` is done."""
    self._since = time.perf_counter()
    self._counted_step = step

  def pause(self, step: int) -> None:
    """Stops the clock; every step before `step` is done."""
    if self._since is None:
      return
    self._seconds += time.perf_counter() - self._since
    self._steps += step - self._counted_step
    self._since = None

  def report(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Shows the metrics of a step; a bar shows only the first ones."""
    texts = [f'{name} {value:.4g}' for name, value in metrics.items()]
    shown = ' '.join(texts)
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      if split == 'train':
        self._bar.set_postfix_str(' '.join(texts[:_SHOWN_ON_BAR]))
      else:
        self._bar.write(f'{split} at step {step}: {shown}', file=sys.stderr)
      return
    rate = self.examples_per_second
    timing = ''
    if split == 'train' and rate:
      left = (self._total - step) * self._batch_size / rate
      minutes, seconds = divmod(round(left), 60)
      timing = f' | {rate:.1f} examples/s, ETA {minutes}:{seconds:02d}'
    logging.info('%s %d/%d: %s%s', split, step, self._total, shown, timing)

  def close(self) -> None:
    """Closes the bar."""
    if self._bar is not None:
      self._bar.close()
