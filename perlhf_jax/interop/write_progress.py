"""Progress of writing a checkpoint: a bar on a terminal, lines in a log."""

import contextlib
import sys
import time

from absl import logging
from etils import epy

with epy.lazy_imports():
  import tqdm  # Not needed on a machine without a terminal.

SECONDS_BETWEEN_LINES = 10.0


class Progress(contextlib.AbstractContextManager):
  """Counts arrays and bytes; logs nothing if writing takes only a moment."""

  def __init__(self, target: str, arrays: int, num_bytes: int):
    """Starts the clock.

    Args:
      target: checkpoint that is written.
      arrays: number of arrays.
      num_bytes: size of all arrays.
    """
    self._target = target
    self._arrays = arrays
    self._num_bytes = num_bytes
    self._arrays_done = self._bytes_done = 0
    self._start = self._last_line = time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=num_bytes, unit='B', unit_scale=True, dynamic_ncols=True
      )

  def add(self, num_bytes: int) -> None:
    """Counts an array that was written or is about to be."""
    self._arrays_done += 1
    self._bytes_done += num_bytes
    if self._bar is not None:
      self._bar.update(num_bytes)
      return
    now = time.monotonic()
    finished = self._arrays_done == self._arrays
    was_shown = self._last_line > self._start
    if now - self._last_line < SECONDS_BETWEEN_LINES and not (
      finished and was_shown
    ):
      return
    self._last_line = now
    rate = self._bytes_done / max(now - self._start, 1e-9)
    left = (self._num_bytes - self._bytes_done) / rate
    minutes, seconds = divmod(round(left), 60)
    logging.info(
      '%s: %d/%d arrays, %.2f/%.2f GB | %.0f MB/s, ETA %d:%02d',
      self._target,
      self._arrays_done,
      self._arrays,
      self._bytes_done / 1e9,
      self._num_bytes / 1e9,
      rate / 1e6,
      minutes,
      seconds,
    )

  def __exit__(self, *error):
    """Closes the bar."""
    if self._bar is not None:
      self._bar.close()
