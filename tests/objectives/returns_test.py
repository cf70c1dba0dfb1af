import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.objectives import returns

LENGTHS = np.array([[4, 1, 0], [2, 3, 4]])
MASK = np.arange(4) < LENGTHS[..., None]
VALID = LENGTHS > 0


def _tokens(seed=0, garbage=np.nan):
  x = np.random.default_rng(seed).normal(size=MASK.shape)
  return np.where(MASK, x, garbage).astype(np.float32)


def _numbers(seed=0, garbage=np.nan):
  x = np.random.default_rng(seed).normal(size=VALID.shape)
  return np.where(VALID, x, garbage).astype(np.float32)


def _responses():
  return [(b, r, int(LENGTHS[b, r])) for b, r in np.ndindex(LENGTHS.shape)]


def test_token_rewards_match_loops():
  scores, kl, beta = _numbers(), _tokens(1), 0.3
  expected = np.zeros(MASK.shape)
  for b, r, length in _responses():
    for t in range(length):
      expected[b, r, t] = -beta * kl[b, r, t]
    if length:
      expected[b, r, length - 1] += (1 - beta) * scores[b, r]
  actual = returns.token_rewards(scores, kl, MASK, beta)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  assert actual.dtype == jnp.float32


@hypothesis.given(st.floats(0, 1))
def test_token_rewards_add_up_to_the_objective(beta):
  scores, kl = _numbers(), _tokens(1)
  totals = returns.token_rewards(scores, kl, MASK, beta).sum(axis=-1)
  for b, r, length in _responses():
    expected = 0.0
    if length:
      nats = sum(float(x) for x in kl[b, r, :length])
      expected = (1 - beta) * float(scores[b, r]) - beta * nats
    assert float(totals[b, r]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_score_is_earned_at_the_last_token_and_not_on_padding():
  rewards = returns.token_rewards(
    np.ones_like(_numbers()), _tokens(), MASK, 0.0
  )
  for b, r, length in _responses():
    expected = [0.0] * 4
    if length:
      expected[length - 1] = 1.0
    np.testing.assert_array_equal(rewards[b, r], expected)


def test_returns_to_go_match_loops():
  rewards = _tokens()
  expected = np.zeros(MASK.shape)
  for b, r, length in _responses():
    for t in range(length):
      expected[b, r, t] = sum(float(x) for x in rewards[b, r, t:length])
  actual = returns.returns_to_go(rewards, MASK)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('gamma', [1.0, 0.9, 0.0])
@pytest.mark.parametrize('gae_lambda', [1.0, 0.95, 0.0])
def test_gae_matches_loops(gamma, gae_lambda):
  rewards, values = _tokens(), _tokens(1)
  expected = np.zeros(MASK.shape)
  for b, r, length in _responses():
    for t in range(length):
      for later in range(t, length):
        is_last = later + 1 == length
        next_value = 0.0 if is_last else float(values[b, r, later + 1])
        delta = float(rewards[b, r, later]) - float(values[b, r, later])
        decay = (gamma * gae_lambda) ** (later - t)
        expected[b, r, t] += decay * (delta + gamma * next_value)
  actual = returns.gae(rewards, values, MASK, gamma, gae_lambda)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_gae_does_not_discount_by_default():
  rewards, values = _tokens(), _tokens(1)
  np.testing.assert_array_equal(
    returns.gae(rewards, values, MASK),
    returns.gae(rewards, values, MASK, gamma=1.0, gae_lambda=0.95),
  )


def test_gae_with_lambda_1_is_returns_less_values():
  rewards, values = _tokens(), _tokens(1)
  np.testing.assert_allclose(
    returns.gae(rewards, values, MASK, 1.0, 1.0),
    np.where(MASK, returns.returns_to_go(rewards, MASK) - values, 0),
    rtol=1e-4,
    atol=1e-6,
  )


def test_leave_one_out_matches_loops():
  totals = _numbers()
  expected = np.zeros(VALID.shape)
  for b, r in np.argwhere(VALID):
    others = [
      float(totals[b, other])
      for other in range(VALID.shape[1])
      if other != r and VALID[b, other]
    ]
    expected[b, r] = totals[b, r] - sum(others) / len(others)
  actual = returns.leave_one_out(totals, VALID)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_leave_one_out_of_a_lone_response_is_zero():
  valid = np.array([[False, True, False], [False, False, False]])
  actual = returns.leave_one_out(np.full((2, 3), 5.0, np.float32), valid)
  np.testing.assert_array_equal(actual, np.zeros((2, 3)))


def test_a_prompt_without_responses_has_no_advantages():
  # It fills up the batch.
  nothing = np.zeros((1, 2), bool)
  garbage = np.full((1, 2), np.nan, np.float32)
  for advantages in (
    returns.leave_one_out(garbage, nothing),
    returns.group_normalize(garbage, nothing),
    returns.whiten(garbage[..., None], nothing[..., None])[..., 0],
  ):
    np.testing.assert_array_equal(advantages, np.zeros((1, 2)))


@pytest.mark.parametrize('scale_by_std', [True, False])
def test_group_normalize_matches_loops(scale_by_std):
  scores = _numbers()
  expected = np.zeros(VALID.shape)
  for b in range(len(scores)):
    group = scores[b, VALID[b]].astype(float)
    std = group.std() + 1e-2 if scale_by_std else 1.0
    expected[b, VALID[b]] = (group - group.mean()) / std
  actual = returns.group_normalize(scores, VALID, 1e-2, scale_by_std)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(
    returns.group_normalize(scores, VALID),
    returns.group_normalize(scores, VALID, 1e-4, True),
  )


def test_whiten_matches_numpy():
  x = _tokens()
  actual = np.asarray(returns.whiten(x, MASK))
  kept = x[MASK].astype(float)
  np.testing.assert_allclose(
    actual[MASK], (kept - kept.mean()) / kept.std(), rtol=1e-4, atol=1e-6
  )
  assert (actual[~MASK] == 0).all()


@hypothesis.given(st.floats(-1e6, 1e6, width=32))
def test_equal_scores_have_no_advantage_at_all(score):
  # In float32 the mean of equal numbers is not always that number: without
  # care the last digit, divided by a standard deviation of its own size,
  # would make an advantage of order 1.
  scores = np.where(VALID, np.float32(score), np.float32(np.nan))
  tokens = np.where(MASK, np.float32(score), np.float32(np.nan))
  for actual in (
    returns.leave_one_out(scores, VALID),
    returns.group_normalize(scores, VALID, 1e-12),
    returns.whiten(tokens, MASK),
  ):
    assert (np.asarray(actual) == 0).all()


@pytest.mark.parametrize('scores', [[2.0, 2.0, 2.0], [1.0, 1.0, 3.0]])
def test_normalizing_has_finite_gradients(scores):
  # The square root of a variance of 0 has none.
  x = jnp.array([scores], jnp.float32)
  valid = jnp.ones((1, 3), bool)
  for function in (
    lambda x: returns.group_normalize(x, valid),
    lambda x: returns.whiten(x[..., None], valid[..., None])[..., 0],
  ):
    gradient = jax.grad(lambda x, f=function: jnp.sum(jnp.sin(f(x))))(x)
    assert np.isfinite(gradient).all()


@hypothesis.given(st.floats(-100, 100, width=32))
def test_group_advantages_ignore_a_common_offset(offset):
  scores = _numbers()
  for function in returns.leave_one_out, returns.group_normalize:
    np.testing.assert_allclose(
      function(scores + np.float32(offset), VALID),
      function(scores, VALID),
      rtol=1e-3,
      atol=1e-4,
    )


def test_a_score_that_is_nan_is_not_hidden():
  scores = _numbers()
  scores[1, 0] = np.nan
  for function in returns.leave_one_out, returns.group_normalize:
    assert np.isnan(function(scores, VALID)[1]).any()
    assert np.isfinite(function(scores, VALID)[0]).all()


FUNCTIONS = {
  'token_rewards': lambda x, y: returns.token_rewards(y, x, MASK, 0.2),
  'returns_to_go': lambda x, y: returns.returns_to_go(x, MASK),
  'gae': lambda x, y: returns.gae(x, 0.5 * x, MASK),
  'leave_one_out': lambda x, y: returns.leave_one_out(y, VALID),
  'group_normalize': lambda x, y: returns.group_normalize(y, VALID),
  'whiten': lambda x, y: returns.whiten(x, MASK),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_garbage_reaches_neither_results_nor_gradients(name):
  function = FUNCTIONS[name]

  def total(tokens, numbers):
    result = function(tokens, numbers)
    return jnp.sum(jnp.sin(result)), result

  differentiate = jax.jit(jax.grad(total, (0, 1), has_aux=True))

  def run(garbage):
    gradients, result = differentiate(_tokens(2, garbage), _numbers(3, garbage))
    return *gradients, result

  for garbage in np.nan, np.inf, -np.inf, 1e30:
    for dirty, clean in zip(run(garbage), run(0.0), strict=True):
      np.testing.assert_array_equal(dirty, clean)
      assert np.isfinite(dirty).all()
      kept = MASK if dirty.ndim == 3 else VALID
      assert (np.asarray(dirty)[~kept] == 0).all()


def test_padding_length_and_batch_order_do_not_matter():
  order = np.array([1, 0])

  def pad(x):
    if x.ndim == 2:
      return x[order]
    return np.pad(x, ((0, 0), (0, 0), (0, 3)))[order]

  mask, tokens, numbers = MASK, _tokens(), _numbers()
  for x, y in (
    (
      returns.token_rewards(pad(numbers), pad(tokens), pad(mask), 0.2),
      returns.token_rewards(numbers, tokens, mask, 0.2),
    ),
    (
      returns.returns_to_go(pad(tokens), pad(mask)),
      returns.returns_to_go(tokens, mask),
    ),
    (
      returns.gae(pad(tokens), pad(tokens), pad(mask)),
      returns.gae(tokens, tokens, mask),
    ),
    (returns.whiten(pad(tokens), pad(mask)), returns.whiten(tokens, mask)),
  ):
    np.testing.assert_allclose(x, pad(np.asarray(y)), rtol=1e-5, atol=1e-6)
