import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling_reference

from perlhf_jax.sampling import warping


def _probabilities(probabilities, **arguments):
  logits = np.log(np.array(probabilities, np.float32))
  return np.exp(warping.warp_logits(logits, **arguments))


@pytest.mark.parametrize('temperature', [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize('top_k', [None, 1, 3, 17, 18, 100])
@pytest.mark.parametrize('top_p', [1e-6, 0.3, 0.9, 1.0])
def test_matches_a_sorted_list(temperature, top_k, top_p):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 5, 18)).astype(np.float32) * 2
  actual = warping.warp_logits(logits, temperature, top_k, top_p)
  assert actual.dtype == jnp.float32
  for index in np.ndindex(2, 5):
    expected = sampling_reference.warp(logits[index], temperature, top_k, top_p)
    np.testing.assert_allclose(actual[index], expected, atol=1e-5)


def test_a_large_vocabulary_and_bfloat16_logits():
  rng = np.random.default_rng(1)
  # No two alike in bfloat16.
  logits = jnp.asarray(rng.permutation(200) / 16, jnp.bfloat16)[None]
  actual = warping.warp_logits(logits, 0.9, None, 0.95)
  expected = sampling_reference.warp(np.float32(logits[0]), 0.9, None, 0.95)
  np.testing.assert_allclose(actual[0], expected, atol=1e-5)
  assert 1 < np.isfinite(actual).sum() < 200


def test_top_p_keeps_the_smallest_set_that_reaches_it():
  probabilities = [0.125, 0.5, 0.0625, 0.25, 0.0625]

  def kept(top_p):
    return set(np.flatnonzero(_probabilities(probabilities, top_p=top_p)))

  assert kept(1e-9) == {1}
  assert kept(0.49) == {1}
  assert kept(0.5) == {1}
  assert kept(0.51) == {1, 3}
  assert kept(0.75) == {1, 3}
  assert kept(0.76) == {0, 1, 3}
  # Both of the last two are as probable.
  assert kept(0.9) == {0, 1, 2, 3, 4}
  np.testing.assert_allclose(
    _probabilities(probabilities, top_p=0.6), [0, 2 / 3, 0, 1 / 3, 0], atol=1e-6
  )


def test_top_k_comes_before_the_nucleus():
  # Of the two kept by top_k the first has 0.6, which reaches 0.55.
  np.testing.assert_allclose(
    _probabilities([0.3, 0.2, 0.5], top_k=2, top_p=0.55), [0, 0, 1], atol=1e-6
  )
  np.testing.assert_allclose(
    _probabilities([0.3, 0.2, 0.5], top_p=0.55),
    [0.375, 0, 0.625],
    atol=1e-6,
  )


def test_temperature_comes_before_the_nucleus():
  # Squared and renormalised: 0.8 and 0.2.
  np.testing.assert_allclose(
    _probabilities([1 / 3, 2 / 3], temperature=0.5, top_p=0.75), [0, 1]
  )


def test_nothing_is_warped_by_default():
  logits = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
  np.testing.assert_array_equal(
    warping.warp_logits(logits), jax.nn.log_softmax(logits)
  )


def test_equal_logits_are_all_kept():
  logits = np.zeros((1, 8), np.float32)
  for arguments in ({'top_k': 2}, {'top_p': 0.3}):
    np.testing.assert_allclose(
      np.exp(warping.warp_logits(logits, **arguments)), 1 / 8, rtol=1e-6
    )


def test_the_nucleus_tells_near_ties_apart():
  # A few roundings apart; either would do to reach the probability.
  logits = np.array([0.3, 0.0, 4e-7], np.float32)
  warped = warping.warp_logits(logits, top_p=0.5)
  assert np.isfinite(warped).tolist() == [True, False, True]


@pytest.mark.parametrize('scale', [1e-6, 1e4])
def test_extreme_logits_stay_a_distribution(scale):
  logits = np.random.default_rng(0).normal(size=(4, 50)) * scale
  for top_p in (1e-6, 0.5, 1 - 1e-7):
    warped = warping.warp_logits(np.float32(logits), 0.5, 40, top_p)
    assert not np.isnan(warped).any()
    np.testing.assert_allclose(np.exp(warped).sum(axis=-1), 1, rtol=1e-5)
