"""Chooses the few shapes to which the batches of a data set are padded.

The choice depends only on the lengths of all examples and on the limits, so
that every host, and every start of a run, chooses the same shapes.
"""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from perlhf_jax.data import length_buckets

# The step between candidate lengths doubles when a length reaches this many
# steps.
_FINENESS = 16
# A shape that saves less than this share of the computation is not worth its
# compilation.
_LEAST_SAVING = 0.01


@dataclasses.dataclass(frozen=True)
class PaddingLengths:
  """Shapes of batches.

  Attributes:
    shapes: pairs of prompt and response length in tokens, by ascending number
      of positions; the last shape holds every example.
    responses: responses per example, which are padded to one length.
  """

  shapes: tuple[tuple[int, int], ...]
  responses: int

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    return np.asarray(self.shapes, np.int64)

  def positions(self, shape: Sequence[int]) -> int:
    """Returns the tokens per example, padding included, of a shape."""
    prompt, response = shape
    return prompt + self.responses * response

  def classes(self, lengths: np.ndarray) -> np.ndarray:
    """Returns the number of the smallest shape that holds each example.

    Args:
      lengths: int64 `[examples, 2]`, tokens of the prompt and of the longest
        response.

    Returns:
      int64 `[examples]`, indices of `shapes`.
    """
    holds = np.all(lengths[:, None, :] <= self._lengths[None], axis=-1)
    return np.argmax(holds, axis=1)

  def fit(self, lengths: np.ndarray) -> tuple[int, int]:
    """Returns the smallest shape that holds all examples of a batch.

    Args:
      lengths: int64 `[batch, 2]`, as in `classes`.
    """
    longest = np.max(lengths, axis=0, keepdims=True)
    return self.shapes[int(self.classes(longest)[0])]


def choose(
  lengths: np.ndarray,
  limits: tuple[int, int],
  responses: int,
  most: int,
) -> PaddingLengths:
  """Chooses the shapes that leave the least padding, greedily.

  It starts with the shape that holds every example, and adds the shape that
  saves most, as long as it saves enough to be worth a program.

  Args:
    lengths: int64 `[examples, 2]`, tokens of the prompt and of the longest
      response of each example.
    limits: maximum prompt and response length.
    responses: responses per example, which are padded to one length.
    most: maximum number of shapes.
  """
  candidates = [
    _candidates(longest, limit)
    for longest, limit in zip(lengths.max(axis=0).tolist(), limits, strict=True)
  ]
  cells = np.stack(
    [np.searchsorted(c, lengths[:, i]) for i, c in enumerate(candidates)]
  )
  numbers, counts = np.unique(cells, axis=1, return_counts=True)
  prompts, answers = np.meshgrid(*candidates, indexing='ij')
  shapes = np.stack([prompts.ravel(), answers.ravel()], axis=1)
  needed = np.stack([c[n] for c, n in zip(candidates, numbers, strict=True)], 1)
  cost = shapes[:, 0] + responses * shapes[:, 1]
  fits = np.all(needed[None] <= shapes[:, None], axis=-1)  # [shapes, cells]
  # Cost of each cell with each shape; the maximum if the cell does not fit.
  each = np.where(fits, cost[:, None], np.iinfo(np.int64).max)
  chosen = [len(shapes) - 1]
  now = each[-1]
  while len(chosen) < most:
    saved = (now - np.minimum(each, now)) @ counts
    best = int(np.argmax(saved))
    if saved[best] < _LEAST_SAVING * (now @ counts):
      break
    chosen.append(best)
    now = np.minimum(each[best], now)
  ordered = sorted(chosen, key=lambda i: (cost[i], *shapes[i]))
  return PaddingLengths(
    tuple((int(shapes[i, 0]), int(shapes[i, 1])) for i in ordered), responses
  )


def _candidates(longest: int, limit: int) -> np.ndarray:
  """Returns candidate lengths; the last one holds the longest sequence."""
  step = length_buckets.SHORTEST
  lengths = [step]
  while lengths[-1] < longest:
    if lengths[-1] >= _FINENESS * step:
      step *= 2
    lengths.append(lengths[-1] + step)
  return np.minimum(np.asarray(lengths, np.int64), limit)
