"""The largest size that fits."""

from collections.abc import Callable

# An upper bound of the search, since a tiny model may fit at every size.
_MOST_STEPS = 2**14


def largest(fits: Callable[[int], bool], step: int) -> int | None:
  """Finds the largest multiple of `step` that fits.

  Doubles the size until it does not fit, then halves the gap.

  Args:
    fits: returns whether a size fits; above a size that does not fit, none may
      fit.
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
