"""Which example stands at which position of an endless training stream.

Position `p` of the stream is a function of (seed, p) alone. A run resumes at
any step by computing, not by replaying, and the examples that a step sees do
not depend on the number of hosts.
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

  Each data set is gone through in epochs; every epoch is a permutation of
  its own. Several data sets are mixed in proportion to `rates`, exactly so
  in each block of 4096 positions (a share below 1/4096 is rounded up).

  Attributes:
    sizes: number of rows of each data set.
    rates: relative rate of each; ignored if there is only one.
    seed: any integer.
    shuffle: False keeps the rows of each data set in their order.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    rates: Sequence[float] = (1.0,),
    seed: int = 0,
    shuffle: bool = True,
  ):
    if not sizes or min(sizes) < 1 or len(sizes) != len(rates):
      raise ValueError(f'Sizes {sizes} and rates {rates} do not fit.')
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
    # The last permutation of each data set: steps come in order.
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
    """Positions from start to stop-1 at which a data set begins an epoch anew.

    Args:
      start: the first position.
      stop: behind the last one.
      least: data sets that are gone through in fewer positions are left out,
        but not the one that takes longest.

    Returns:
      int64 `[epochs]`, rising.
    """
    members, places = self._places(start, stop)
    sizes = np.asarray(self.sizes, np.int64)
    epochs = sizes * _BLOCK / self._quotas
    counts = epochs >= min(least, epochs.max())
    begins = (places > 0) & (places % sizes[members] == 0) & counts[members]
    return start + np.flatnonzero(begins)

  def _places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Data set, and place in its own endless stream, of each position."""
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
        # How often this data set came before each place of the block.
        before = np.cumsum(members == index) - 1
        chosen = members[within] == index
        block_places[chosen] = block * quota + before[within[chosen]]
      sets[here], places[here] = members[within], block_places
    return sets, places

  def _epoch_rows(self, index: int, positions: np.ndarray) -> np.ndarray:
    """Rows at positions of the endless stream of one data set."""
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
    """Randomness of a number below 2^64 that says what it is for."""
    key = np.array([self.seed % 2**64, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _quotas(rates: Sequence[float]) -> np.ndarray:
  """Places of each data set in a block; they sum to the block's size."""
  shares = np.asarray(rates, np.float64) / max(sum(rates), 1e-300) * _BLOCK
  quotas = np.floor(shares).astype(np.int64)
  for index in np.argsort(quotas - shares)[: _BLOCK - quotas.sum()]:
    quotas[index] += 1
  for index in np.flatnonzero((quotas == 0) & (shares > 0)):
    quotas[index] += 1
    quotas[np.argmax(quotas)] -= 1
  return quotas
