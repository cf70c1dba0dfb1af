"""The digest of an array, word by word in Python's integers."""

import numpy as np

_MULTIPLIERS = 2654435761, 2246822519


def _mix(x):
  """murmur3's finaliser."""
  x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
  x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
  return x ^ (x >> 16)


def digest(array: np.ndarray) -> str:
  """Returns dtype, shape and digest as `array_digests.finish` does."""
  width = min(4, array.dtype.itemsize)
  words = np.frombuffer(array.tobytes(), f'<u{width}').tolist()
  sums = [
    sum(_mix((word + m * (i + 1)) % 2**32) for i, word in enumerate(words))
    % 2**32
    for m in _MULTIPLIERS
  ]
  name, shape = array.dtype.name, list(array.shape)
  return f'{name} {shape} {sums[0]:08x}{sums[1]:08x}'
