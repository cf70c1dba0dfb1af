"""The order of examples in the endless training stream.

The example at position `p` of the stream is a function of (seed, p) alone. A
run resumes at any step without replaying the stream, and the examples of a step
do not depend on the number of hosts.
"""

from collections.abc import Sequence

import numpy as np

from perlhf_jax.core import errors

# In a mixture, every block of positions holds each task in proportion to its
# rate.
_BLOCK = 4096
# Keeps the random streams of epochs and of blocks apart.
_BLOCK_STREAM = 1 << 62


class ExampleOrder:
  """An order over the rows of one or several data sets stored end to end.

  Each data set is read in epochs, each with its own permutation. Several data
  sets are mixed in proportion to `rates`, exactly within each block of 4096
  positions (a share below 1/4096 is rounded up).

  Attributes:
    sizes: number of rows of each data set.
    rates: relative rate of each data set; ignored if there is only one.
    seed: any integer.
    shuffle: whether each epoch is permuted; False keeps the order of the rows.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    rates: Sequence[float] = (1.0,),
    seed: int = 0,
    shuffle: bool = True,
  ):
    if not sizes or min(sizes) < 1 or len(sizes) != len(rates):
      raise ValueError(
        f'The numbers of sizes {sizes} and rates {rates} differ.'
      )
    if len(sizes) > 1 and (min(rates) < 0 or sum(rates) <= 0):
      raise errors.ConfigError(
        f'The rates of a mixture must be positive, but they are {rates}.'
      )
    self.sizes = tuple(sizes)
    self.rates = tuple(rates)
    self.seed = seed
    self.shuffle = shuffle
    self._offsets = np.cumsum([0, *sizes[:-1]])
    self._quotas = _quotas(rates)
    # The last permutation of each data set, since steps come in order.
    self._last = {}

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Rows at positions start..stop-1 of the stream, int64 [stop - start]."""
    members, places = self._places(start, stop)
    rows = np.empty_like(places)
    for index in np.unique(members):
      here = members == index
      rows[here] = self._epoch_rows(int(index), places[here])
    return rows

  def epoch_starts(self, start: int, stop: int, least: int) -> np.ndarray:
    """Returns the positions at which data sets begin another epoch.

    Args:
      start: first position.
      stop: last position + 1.
      least: data sets whose epoch has fewer positions are left out, except the
        data set with the longest epoch.

    Returns:
      int64 `[epochs]`, ascending.
    """
    members, places = self._places(start, stop)
    sizes = np.asarray(self.sizes, np.int64)
    epochs = sizes * _BLOCK / self._quotas
    counts = epochs >= min(least, epochs.max())
    begins = (places > 0) & (places % sizes[members] == 0) & counts[members]
    return start + np.flatnonzero(begins)

  def _places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Data set of each position, and the position in its own endless stream."""
    positions = np.arange(start, stop, dtype=np.int64)
    if len(self.sizes) == 1:
      return np.zeros_like(positions), positions
    sets, places = np.empty_like(positions), np.empty_like(positions)
    for block in range(start // _BLOCK, (stop - 1) // _BLOCK + 1):
      members = np.repeat(np.arange(len(self.sizes)), self._quotas)
      members = self.generator(_BLOCK_STREAM + block).permutation(members)
      here = (positions // _BLOCK) == block
      within = positions[here] - block * _BLOCK
      block_places = np.empty(len(within), np.int64)
      for index, quota in enumerate(self._quotas):
        # Number of earlier positions of this data set within the block.
        before = np.cumsum(members == index) - 1
        chosen = members[within] == index
        block_places[chosen] = block * quota + before[within[chosen]]
      sets[here], places[here] = members[within], block_places
    return sets, places

  def _epoch_rows(self, index: int, positions: np.ndarray) -> np.ndarray:
    """Rows at positions of one data set's endless stream."""
    size = self.sizes[index]
    epochs = positions // size
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      rows[here] = self._permutation(index, int(epoch))[positions[here] % size]
    return rows + self._offsets[index]

  def _permutation(self, index: int, epoch: int) -> np.ndarray:
    size = self.sizes[index]
    if not self.shuffle:
      return np.arange(size)
    last_epoch, permutation = self._last.get(index, (None, None))
    if last_epoch != epoch:
      permutation = self.generator((index << 40) + epoch).permutation(size)
      self._last[index] = epoch, permutation
    return permutation

  def generator(self, stream: int) -> np.random.Generator:
    """Returns the random generator of a stream, a number below 2^64."""
    key = np.array([self.seed % 2**64, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _quotas(rates: Sequence[float]) -> np.ndarray:
  """Returns each data set's number of positions in a block of `_BLOCK`."""
  shares = np.asarray(rates, np.float64) / max(sum(rates), 1e-300) * _BLOCK
  quotas = np.floor(shares).astype(np.int64)
  for index in np.argsort(quotas - shares)[: _BLOCK - quotas.sum()]:
    quotas[index] += 1
  for index in np.flatnonzero((quotas == 0) & (shares > 0)):
    quotas[index] += 1
    quotas[np.argmax(quotas)] -= 1
  return quotas
