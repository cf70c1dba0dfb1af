import dataclasses

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from perlhf_jax.core import errors
from perlhf_jax.rl import rewards

LENGTHS = np.array([[4, 1, 0], [2, 3, 4]])
MASK = np.arange(4) < LENGTHS[..., None]
VALID = LENGTHS > 0
HAS_EOS = np.array([[False, True, False], [True, True, False]])
NOTHING = rewards.initial_moments()

_shape = jax.jit(rewards.shape_scores, static_argnums=0)
_update = jax.jit(rewards.update_moments)


def _scores(seed=0, scale=1.0, offset=0.0, garbage=np.nan):
  x = offset + scale * np.random.default_rng(seed).normal(size=VALID.shape)
  return np.where(VALID, x, garbage).astype(np.float32)


def test_scores_are_left_alone_by_default():
  scores, moments = _shape(
    rewards.RewardShaping(), _scores(), MASK, HAS_EOS, NOTHING
  )
  np.testing.assert_array_equal(scores, np.where(VALID, _scores(), 0))
  assert moments == NOTHING


def test_penalties_match_loops():
  config = rewards.RewardShaping(length_penalty=0.1, missing_eos_penalty=2.0)
  raw = _scores()
  scores, _ = _shape(config, raw, MASK, HAS_EOS, NOTHING)
  for b, r in np.ndindex(VALID.shape):
    expected = 0.0
    if VALID[b, r]:
      expected = float(raw[b, r]) - 0.1 * int(LENGTHS[b, r])
      if not HAS_EOS[b, r]:
        expected -= 2.0
    assert float(scores[b, r]) == pytest.approx(expected, rel=1e-5)


def test_running_normalisation_matches_numpy_over_all_batches_so_far():
  config = rewards.RewardShaping(normalize=True)
  moments, seen = NOTHING, []
  for seed in range(6):
    # Far from zero and drifting, where sums of squares would lose digits.
    raw = _scores(seed, scale=0.1 + seed, offset=300 - 10 * seed)
    shaped, moments = _shape(config, raw, MASK, HAS_EOS, moments)
    seen.extend(raw[VALID].astype(float))
    expected = (raw[VALID] - np.mean(seen)) / np.std(seen)
    np.testing.assert_allclose(
      np.asarray(shaped)[VALID], expected, rtol=1e-3, atol=1e-3
    )
    assert float(moments.count) == len(seen)
    assert float(moments.mean) == pytest.approx(np.mean(seen), rel=1e-5)
    assert float(moments.std) == pytest.approx(np.std(seen), rel=1e-3)
    assert (np.asarray(shaped)[~VALID] == 0).all()


@hypothesis.given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_moments_do_not_depend_on_the_cuts(counts):
  # Batches of `count` numbers each, in rows of 4.
  numbers = np.random.default_rng(1).normal(5, 2, 16).astype(np.float32)
  moments, start = NOTHING, 0
  for count in counts:
    x = np.full((1, 4), np.nan, np.float32)
    x[0, 4 - count :] = numbers[start : start + count]
    moments = _update(moments, x, ~np.isnan(x))
    start += count
  seen = numbers[:start].astype(float)
  assert float(moments.count) == start
  if start:
    assert float(moments.mean) == pytest.approx(seen.mean(), rel=1e-5)
    assert float(moments.std) == pytest.approx(seen.std(), rel=1e-4, abs=1e-6)
  else:
    assert moments.std == 0


@hypothesis.given(st.floats(-1e4, 1e4, width=32))
def test_constant_scores_become_zero(score):
  # Exactly: a rounded mean, divided by a spread of the same rounding, would
  # make rewards of order 1.
  config = rewards.RewardShaping(normalize=True)
  raw, moments = np.full(VALID.shape, score, np.float32), NOTHING
  for _ in range(3):
    shaped, moments = _shape(config, raw, MASK, HAS_EOS, moments)
    assert (np.asarray(shaped) == 0).all()


def test_clip_comes_after_normalisation_and_before_penalties():
  config = rewards.RewardShaping(
    normalize=True, clip=0.5, missing_eos_penalty=3.0
  )
  raw = _scores(offset=100.0)
  shaped, _ = _shape(config, raw, MASK, HAS_EOS, NOTHING)
  seen = raw[VALID].astype(float)
  expected = np.clip((raw - seen.mean()) / seen.std(), -0.5, 0.5) - 3 * ~HAS_EOS
  assert (np.abs(expected[VALID & HAS_EOS]) == 0.5).any()
  np.testing.assert_allclose(
    np.asarray(shaped)[VALID], expected[VALID], rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_broken_score_stays_broken_and_spoils_no_statistics(bad):
  config = rewards.RewardShaping(normalize=True, clip=1.0, length_penalty=0.1)
  raw = _scores()
  raw[1, 1] = bad
  shaped, moments = _shape(config, raw, MASK, HAS_EOS, NOTHING)
  np.testing.assert_equal(float(shaped[1, 1]), bad)
  good = VALID.copy()
  good[1, 1] = False
  assert np.isfinite(np.asarray(shaped)[good]).all()
  assert float(moments.count) == good.sum()
  assert float(moments.mean) == pytest.approx(raw[good].mean(), rel=1e-5)


def test_garbage_where_no_response_is_does_not_matter():
  config = rewards.RewardShaping(normalize=True, length_penalty=0.1)
  clean = _shape(config, _scores(garbage=0.0), MASK, HAS_EOS, NOTHING)
  for garbage in np.nan, np.inf, 1e30:
    dirty = _shape(config, _scores(garbage=garbage), MASK, HAS_EOS, NOTHING)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_moments_are_scalars_to_be_saved():
  leaves = jax.tree.leaves(NOTHING)
  assert len(leaves) == len(dataclasses.fields(rewards.Moments))
  for leaf in leaves:
    assert leaf.shape == ()
    assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(
  'setting',
  [{'clip': 0.0}, {'length_penalty': -0.1}, {'missing_eos_penalty': -1.0}],
)
def test_bad_settings_are_named(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigError, match=rf'RewardShaping\.{name} is'):
    rewards.RewardShaping(**setting)


MEMBERS = np.random.default_rng(2).normal(size=(3, 2, 4)).astype(np.float32)


@pytest.mark.parametrize(
  'how, expected',
  [('mean', MEMBERS.mean(axis=-1)), ('min', MEMBERS.min(axis=-1))],
)
def test_combine(how, expected):
  np.testing.assert_allclose(
    rewards.combine(MEMBERS, how), expected, rtol=1e-5, atol=1e-7
  )


def test_combine_refuses_what_it_does_not_know():
  with pytest.raises(errors.ConfigError, match="must be one of 'mean', 'min'"):
    rewards.combine(MEMBERS, 'max')


_ALL = np.ones((4, 16, 3), bool)
_ENDED = np.ones((4, 16), bool)
_NORMALIZE = rewards.RewardShaping(normalize=True)
_count = jax.jit(rewards.count_outliers)


def _rollouts(number, outlier=None):
  """Normalised scores of rollouts, the second of which has an outlier."""
  moments, shaped = NOTHING, []
  for seed in range(number):
    raw = np.random.default_rng(seed).normal(3, 2, (4, 16)).astype(np.float32)
    if seed == 1 and outlier is not None:
      raw[2, 5] = outlier
      assert _count(raw, _ALL, moments) == 1
    else:
      assert _count(raw, _ALL, moments) == 0
    scores, moments = _shape(_NORMALIZE, raw, _ALL, _ENDED, moments)
    shaped.append(np.asarray(scores))
  return shaped, moments


@pytest.mark.parametrize(
  'seen, raw',
  [
    ([0.0, 0.1], [1.0, 2.0, 4.0, 8.0]),  # The rollout's own spread.
    ([-50.0, 50.0], [1.0, 2.0, 4.0, 8.0]),  # All scores before spread more.
    ([7.0, 7.0], [7.0, 7.0, 7.0]),  # No spread at all.
    ([0.25], [0.25, 0.25]),
    ([-7.0], [-7.0, -7.0]),
    ([0.0, 3.0], [1e15, -1e15, 1e14]),
    ([0.0, 3.0], []),
  ],
)
def test_outlier_bounds_match_scipy(seen, raw):
  moments = _update(
    NOTHING, np.array([seen], np.float32), np.ones((1, len(seen)), bool)
  )
  x = np.array([[*raw, np.nan, 1e30]], np.float32)
  bounds = rewards.outlier_bounds(
    x, np.arange(x.size)[None] < len(raw), moments
  )
  if raw:
    spread = max(stats.median_abs_deviation(raw, scale='normal'), np.std(seen))
    spread = spread or max(1.0, abs(np.median(raw)))
    middle, reach = np.median(raw), 30 * spread
  else:
    middle, reach = 0.0, 1e15
  expected = max(middle - reach, -1e15), min(middle + reach, 1e15)
  np.testing.assert_allclose(bounds, expected, rtol=1e-4)


@pytest.mark.parametrize('outlier', [1e3, 1e15, -1e25, 3e38])
def test_one_huge_score_does_not_silence_the_others(outlier):
  shaped, moments = _rollouts(20, outlier)
  clean, expected = _rollouts(20)
  assert np.isfinite(shaped).all()
  assert np.abs(shaped[1]).max() == np.sign(outlier) * shaped[1][2, 5] > 5
  # It stays the largest by far, and the others keep their order and size.
  for after, without in zip(shaped[2:], clean[2:], strict=True):
    assert 0.3 < after.std() / without.std() < 1.05
    assert np.corrcoef(after.ravel(), without.ravel())[0, 1] > 0.999
  assert shaped[19].std() > 0.6
  assert float(moments.count) == float(expected.count)


def test_a_huge_score_in_the_first_rollout_is_cut_too():
  raw = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
  raw[0, 0] = 1e25
  shaped, moments = _shape(_NORMALIZE, raw, _ALL, _ENDED, NOTHING)
  assert _count(raw, _ALL, NOTHING) == 1
  rest = np.delete(np.asarray(shaped).ravel(), 0)
  assert 0.1 < rest.std() < 1 and float(moments.std) < 10


def test_rare_rewards_are_no_outliers():
  # One of a thousand is 1: the others have no spread.
  raw = np.zeros((4, 16), np.float32)
  _, moments = _shape(_NORMALIZE, raw, _ALL, _ENDED, NOTHING)
  # A copy: JAX may still read the first array.
  raw = raw.copy()
  raw[3, 3] = 1
  assert _count(raw, _ALL, moments) == 0
  shaped, moments = _shape(_NORMALIZE, raw, _ALL, _ENDED, moments)
  assert float(moments.mean) == pytest.approx(1 / 128)
  assert float(shaped[3, 3]) > 10


def test_a_whole_rollout_of_huge_scores_keeps_the_moments_finite():
  raw = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
  shaped, moments = _shape(_NORMALIZE, raw * 1e30, _ALL, _ENDED, NOTHING)
  assert np.isfinite(shaped).all() and np.isfinite(float(moments.std))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_scores_that_are_not_finite_are_not_counted_as_outliers(bad):
  raw = np.full((4, 16), bad, np.float32)
  assert _count(raw, _ALL, NOTHING) == 0
  assert _count(raw, np.zeros_like(_ALL), NOTHING) == 0
