"""The largest size that fits."""

from collections.abc import Callable

# Beyond it nobody trains, and the compiler may never say no to a tiny model.
_MOST_STEPS = 2**14


def largest(fits: Callable[[int], bool], step: int) -> int | None:
  """Finds the largest multiple of `step` that fits.

  Sizes are doubled until one does not fit, and the gap is then halved.

  Args:
    fits: says of a size whether it fits, given that larger ones do not where
      smaller ones do not.
    step: the smallest size.

  Returns:
    The size; None if not even `step` fits.
  """
  if not fits(step):
    return None
  low, high = 1, 2
  while high <= _MOST_STEPS and fits(high * step):
    low, high = high, 2 * high
  while high - low > 1 and high <= _MOST_STEPS:
    middle = (low + high) // 2
    if fits(middle * step):
      low = middle
    else:
      high = middle
  return low * step
