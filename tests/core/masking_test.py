import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.core import masking

RAGGED = np.array(
  [
    [True, True, False, False],
    [True, True, True, True],
    [False, False, False, False],
    [False, True, False, True],
    [False, True, True, False],
  ]
)


def _values(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('axis', [0, 1])
def test_masked_sum_and_mean_match_loops(axis):
  x = _values(RAGGED.shape)
  lines = range(RAGGED.shape[1 - axis])
  sums, means = [], []
  for line in lines:
    kept = [
      v
      for v, m in zip(
        np.take(x, line, 1 - axis), np.take(RAGGED, line, 1 - axis), strict=True
      )
      if m
    ]
    sums.append(sum(kept))
    means.append(sum(kept) / len(kept) if kept else 0.0)
  np.testing.assert_allclose(
    masking.masked_sum(x, RAGGED, axis), sums, rtol=1e-6
  )
  np.testing.assert_allclose(
    masking.masked_mean(x, RAGGED, axis), means, rtol=1e-6
  )


def test_masked_mean_over_everything():
  x = _values(RAGGED.shape)
  np.testing.assert_allclose(
    masking.masked_mean(x, RAGGED), x[RAGGED].mean(), rtol=1e-6
  )
  assert masking.masked_mean(x, np.zeros_like(RAGGED)) == 0


@pytest.mark.parametrize('reduce', [masking.masked_sum, masking.masked_mean])
def test_masked_positions_are_ignored_even_if_not_finite(reduce):
  x = _values(RAGGED.shape)
  for garbage in np.nan, np.inf, -np.inf, 1e30:
    dirty = np.where(RAGGED, x, np.float32(garbage))
    np.testing.assert_array_equal(
      reduce(dirty, RAGGED, 1), reduce(x, RAGGED, 1)
    )


def test_gradient_of_masked_mean_is_zero_at_masked_nan():
  x = np.where(RAGGED, _values(RAGGED.shape), np.float32(np.nan))
  gradient = jax.grad(lambda x: masking.masked_mean(x, RAGGED))(jnp.array(x))
  np.testing.assert_allclose(gradient, RAGGED / RAGGED.sum(), rtol=1e-6)


def test_masked_sum_keeps_integers():
  tokens = np.arange(20, dtype=np.int32).reshape(5, 4)
  total = masking.masked_sum(tokens, RAGGED)
  assert total.dtype == jnp.int32
  assert total == tokens[RAGGED].sum()


def _last_valid(row):
  last = 0
  for position, is_valid in enumerate(row):
    if is_valid:
      last = position
  return last


@hypothesis.given(
  hnp.arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 6)))
)
def test_last_valid_index_and_gather_match_loops(mask):
  expected = [_last_valid(row) for row in mask]
  index = masking.last_valid_index(mask)
  assert index.dtype == jnp.int32
  np.testing.assert_array_equal(index, expected)
  x = _values((*mask.shape, 2))
  np.testing.assert_array_equal(
    masking.gather_last_valid(x, mask),
    [row[last] for row, last in zip(x, expected, strict=True)],
  )


def test_rows_without_a_valid_token_give_position_0():
  mask = np.zeros([2, 3], bool)
  np.testing.assert_array_equal(masking.last_valid_index(mask), [0, 0])
  x = _values((2, 3))
  np.testing.assert_array_equal(masking.gather_last_valid(x, mask), x[:, 0])


def test_gather_ignores_padding():
  x = _values((5, 4, 3))
  padding = ((0, 0), (0, 3))
  padded = masking.gather_last_valid(
    np.pad(x, (*padding, (0, 0)), constant_values=np.nan),
    np.pad(RAGGED, padding),
  )
  np.testing.assert_array_equal(padded, masking.gather_last_valid(x, RAGGED))


def test_shift_right():
  tokens = np.array([[5, 6, 1, 0], [7, 1, 0, 0]], np.int32)
  shifted = masking.shift_right(tokens)
  assert shifted.dtype == jnp.int32
  np.testing.assert_array_equal(shifted, [[0, 5, 6, 1], [0, 7, 1, 0]])
  np.testing.assert_array_equal(
    masking.shift_right(tokens, start_id=9)[:, 0], [9, 9]
  )


def test_mask_after_eos():
  tokens = np.array(
    [[5, 1, 7, 1], [1, 1, 1, 1], [5, 6, 7, 8], [0, 5, 0, 1]], np.int32
  )
  np.testing.assert_array_equal(
    masking.mask_after_eos(tokens),
    [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
  )
  np.testing.assert_array_equal(
    masking.mask_after_eos(tokens, eos_id=7)[0], [1, 1, 1, 0]
  )


@hypothesis.given(
  hnp.arrays(
    np.int32,
    st.tuples(st.integers(1, 3), st.integers(1, 8)),
    elements=st.integers(0, 3),
  )
)
def test_mask_after_eos_matches_a_loop(tokens):
  expected = []
  for row in tokens:
    ended, kept = False, []
    for token in row:
      kept.append(not ended)
      ended = ended or token == 1
    expected.append(kept)
  np.testing.assert_array_equal(masking.mask_after_eos(tokens), expected)
