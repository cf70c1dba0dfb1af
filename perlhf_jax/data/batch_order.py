"""Groups training examples of similar lengths into batches.

The stream of examples (`example_order`) is cut into windows of several batches.
Within a window, examples are sorted by the shape that they need
(`padding_lengths`), and keep their random order within a shape. The resulting
batches are visited in a random order. So a batch is a function of (seed, step)
alone, and no example leaves its window.

No example crosses the end of an epoch either: the parts of a window between
epoch ends are ordered separately, and a batch that contains an end stays as it
is. In a mixture this holds for each data set whose epoch is as long as a window
or longer. A smaller data set occurs several times in a window; since examples
of one shape keep their order, its epochs still follow each other within each
shape.
"""

import functools
import itertools

import numpy as np

from perlhf_jax.data import example_order

# Distinct from the random streams of `example_order`.
_WINDOW_STREAM = 1 << 63


class BatchOrder:
  """The batches of an endless stream, grouped by length."""

  def __init__(
    self,
    order: example_order.ExampleOrder,
    classes: np.ndarray,
    batch_size: int,
    window: int,
  ):
    """Prepares the order.

    Args:
      order: the stream of examples.
      classes: int64 `[examples]`, the length class of each example.
      batch_size: examples per batch.
      window: batches per window.
    """
    self._order = order
    self._classes = classes
    self._batch_size = batch_size
    self._window = window
    # Steps come in order; read-ahead may need the next window, too.
    self._windows = functools.lru_cache(maxsize=4)(self._make_window)

  def rows(self, step: int) -> np.ndarray:
    """Returns the examples of a step, int64 `[batch_size]`."""
    window, place = divmod(step, self._window)
    return self._windows(window)[place]

  def _make_window(self, window: int) -> np.ndarray:
    """Returns the batches of a window, int64 `[window, batch_size]`."""
    size = self._batch_size
    start = window * self._window * size
    stop = start + self._window * size
    rows = self._order.rows(start, stop)
    ends = self._order.epoch_starts(start, stop, self._window * size) - start
    rng = self._order.generator(_WINDOW_STREAM + window)
    # The batches between `cuts[i]` and `cuts[i + 1]` are ordered together.
    cuts = np.unique([0, *(ends // size), *(-(-ends // size)), self._window])
    parts = [
      self._make_part(rows[first * size : last * size], rng)
      for first, last in itertools.pairwise(cuts)
    ]
    batches = np.concatenate(parts)
    if window == 0:
      # A shape that does not fit into memory then fails at the first step.
      longest = np.argmax(np.max(self._classes[batches], axis=1)[: cuts[1]])
      batches[[0, longest]] = batches[[longest, 0]]
    return batches

  def _make_part(
    self, rows: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """Returns the batches of a part of a window, in random order."""
    by_length = np.argsort(self._classes[rows], kind='stable')
    batches = rows[by_length].reshape(-1, self._batch_size)
    return rng.permutation(batches)
