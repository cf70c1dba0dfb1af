"""Resizes a ViT's position embeddings to another resolution."""

import math

import numpy as np
from scipy import ndimage


def resize_positions(positions: np.ndarray, num_tokens: int) -> np.ndarray:
  """Resizes position embeddings to another number of patches.

  Interpolates bilinearly with aligned corners, as big_vision does
  (`scipy.ndimage.zoom` with order 1); Hugging Face interpolates bicubically.

  Args:
    positions: float32 `[1, tokens, embed]` of a square grid of patches.
    num_tokens: number of patches of the new square grid.

  Returns:
    float32 `[1, num_tokens, embed]`.
  """
  before, after = (math.isqrt(n) for n in (positions.shape[1], num_tokens))
  if before == after:
    return positions
  grid = positions.reshape(before, before, -1)
  zoom = after / before
  grid = ndimage.zoom(grid, (zoom, zoom, 1), order=1)
  return grid.reshape(1, num_tokens, -1)
