import numpy as np
import pytest

from perlhf_jax.models import resolution


def positions(side, width=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(1, side * side, width)).astype(np.float32)


def bilinear(grid, side):
  """Loops over the points of a grid whose corners are those of the old one."""
  old = len(grid)
  out = np.zeros((side, side, grid.shape[-1]))
  for i in range(side):
    for j in range(side):
      y, x = i * (old - 1) / (side - 1), j * (old - 1) / (side - 1)
      top, left = min(int(y), old - 2), min(int(x), old - 2)
      dy, dx = y - top, x - left
      out[i, j] = (
        (1 - dy) * (1 - dx) * grid[top, left]
        + (1 - dy) * dx * grid[top, left + 1]
        + dy * (1 - dx) * grid[top + 1, left]
        + dy * dx * grid[top + 1, left + 1]
      )
  return out


def test_the_same_size_is_the_same_array():
  before = positions(3)
  assert resolution.resize_positions(before, 9) is before


@pytest.mark.parametrize(('old', 'new'), [(2, 3), (4, 7), (7, 4), (16, 58)])
def test_bilinear_between_the_corners(old, new):
  before = positions(old)
  after = resolution.resize_positions(before, new * new)
  assert after.shape == (1, new * new, 3)
  assert after.dtype == np.float32
  expected = bilinear(before.reshape(old, old, 3), new)
  np.testing.assert_allclose(after.reshape(new, new, 3), expected, atol=1e-5)
