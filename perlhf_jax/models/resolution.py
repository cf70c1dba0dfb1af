"""A ViT at another resolution: its position embeddings, resized."""

import math

import numpy as np
from scipy import ndimage


def resize_positions(positions: np.ndarray, num_tokens: int) -> np.ndarray:
  """Resizes position embeddings to another number of patches.

  Bilinearly between the corners, as big_vision does (`scipy.ndimage.zoom` of
  order 1); Hugging Face's bicubic interpolation gives others.

  Args:
    positions: float32 `[1, tokens, embed]` of a square of patches.
    num_tokens: those of the wanted square.

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
