import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy

from perlhf_jax.objectives import kl

LOGPROBS = st.floats(-30, 0, width=32)
NAMES = sorted(kl.ESTIMATORS)


def _reference(name, logprob, ref_logprob):
  x = float(ref_logprob) - float(logprob)
  return {'k1': -x, 'k2': x * x / 2, 'k3': math.expm1(x) - x}[name]


@pytest.mark.parametrize('name', NAMES)
@hypothesis.given(LOGPROBS, st.floats(-15, 15, width=32))
def test_estimators_match_their_definitions(name, logprob, distance):
  logprobs = np.array([logprob], np.float32)
  ref_logprobs = logprobs + np.float32(distance)
  actual = kl.ESTIMATORS[name](logprobs, ref_logprobs)
  expected = _reference(name, logprobs[0], ref_logprobs[0])
  # For x near 0, k3 is x² / 2, of which a float32 has no digits below 1e-14.
  np.testing.assert_allclose(actual, [expected], rtol=1e-4, atol=1e-7)
  assert actual.dtype == jnp.float32


@pytest.mark.parametrize('name', ['k2', 'k3'])
def test_k2_and_k3_are_never_negative(name):
  distances = np.concatenate([np.geomspace(1e-12, 500, 2000), [0.0]])
  x = np.concatenate([distances, -distances]).astype(np.float32)
  estimates = kl.ESTIMATORS[name](np.zeros_like(x), x)
  assert np.isfinite(estimates).all()
  assert (np.asarray(estimates) >= 0).all()
  # k1 is, half of the time.
  assert (np.asarray(kl.k1(np.zeros_like(x), x)) < 0).any()


@pytest.mark.parametrize('name', ['k1', 'k3'])
def test_sums_over_responses_are_unbiased(name):
  mask = tiny_policy.MASK[None]
  logprobs = tiny_policy.logprobs(tiny_policy.LOGITS)[None]
  ref_logprobs = tiny_policy.logprobs(tiny_policy.REF_LOGITS)[None]
  tokens = kl.token_kl(name, logprobs, ref_logprobs, mask)
  sums = kl.sequence_sums(tokens, mask)[0]
  probabilities = tiny_policy.probabilities(tiny_policy.LOGITS)
  assert sum(probabilities) == pytest.approx(1, rel=1e-5)
  exact = float(tiny_policy.kl(tiny_policy.LOGITS))
  assert exact > 0.1
  assert float(probabilities @ sums) == pytest.approx(exact, rel=1e-5)


def test_k2_is_biased():
  # Or the test above could not tell the estimators apart.
  mask = tiny_policy.MASK[None]
  tokens = kl.token_kl(
    'k2',
    tiny_policy.logprobs(tiny_policy.LOGITS)[None],
    tiny_policy.logprobs(tiny_policy.REF_LOGITS)[None],
    mask,
  )
  probabilities = tiny_policy.probabilities(tiny_policy.LOGITS)
  estimate = float(probabilities @ kl.sequence_sums(tokens, mask)[0])
  exact = float(tiny_policy.kl(tiny_policy.LOGITS))
  assert estimate != pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
  'name, exact', [('k1', 'none'), ('k2', 'forward'), ('k3', 'backward')]
)
def test_mean_gradients_are_those_documented(name, exact):
  # One token: the state after EOS, which is where every response starts.
  logits, ref = tiny_policy.LOGITS[1], tiny_policy.REF_LOGITS[1]
  p, q = jax.nn.softmax(logits), jax.nn.softmax(ref)

  def mean(logits):
    estimates = kl.ESTIMATORS[name](
      jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
    )
    return p @ estimates  # The samples do not move with the policy.

  def forward(logits):
    p = jax.nn.softmax(logits)
    return p @ jnp.log(p / q)

  def backward(logits):
    return q @ jnp.log(q / jax.nn.softmax(logits))

  expected = {'none': lambda x: 0.0 * x.sum()}
  expected.update(forward=forward, backward=backward)
  np.testing.assert_allclose(
    jax.grad(mean)(logits), jax.grad(expected[exact])(logits), atol=1e-6
  )


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('garbage', [np.nan, np.inf, -np.inf, 1e30])
def test_garbage_at_masked_positions_is_ignored(name, garbage):
  rng = np.random.default_rng(0)
  mask = np.arange(4) < np.array([[4, 1, 0], [2, 3, 1]])[..., None]
  clean = rng.normal(size=(2, *mask.shape)).astype(np.float32)
  dirty = np.where(mask, clean, np.float32(garbage))

  def total(pair):
    tokens = kl.token_kl(name, pair[0], pair[1], mask)
    return jnp.sum(kl.sequence_sums(tokens, mask)), tokens

  (value, tokens), gradient = jax.value_and_grad(total, has_aux=True)(
    jnp.array(dirty)
  )
  expected = sum(
    _reference(name, *clean[:, b, r, t]) for b, r, t in np.argwhere(mask)
  )
  assert float(value) == pytest.approx(expected, rel=1e-5)
  assert (np.asarray(tokens)[~mask] == 0).all()
  assert (np.asarray(gradient)[:, ~mask] == 0).all()
  assert np.isfinite(gradient).all()


def test_ratio_of_equal_logprobs_is_exactly_1():
  logprobs = np.linspace(-40, 0, 101, dtype=np.float32)
  ratios = jax.jit(kl.probability_ratio)(logprobs, logprobs)
  assert (np.asarray(ratios) == 1.0).all()


@hypothesis.given(st.floats(-19.5, 19.5, width=32))
def test_ratio_is_the_exponential(distance):
  one = np.array([distance], np.float32)
  actual = kl.probability_ratio(one, np.zeros(1, np.float32))
  np.testing.assert_allclose(actual, [math.exp(one[0])], rtol=1e-5)


@pytest.mark.parametrize('distance', [21.0, 100.0, 1e6])
def test_huge_ratios_stay_finite_and_push_the_right_way(distance):
  def ratio(x):
    return kl.probability_ratio(x, jnp.zeros(()))

  def k3(x):
    return kl.k3(-x, jnp.zeros(()))

  for function in ratio, k3:
    value, gradient = jax.value_and_grad(function)(jnp.float32(distance))
    assert np.isfinite(value)
    # More than before the tangent took over, and still growing.
    assert value > function(jnp.float32(20.0))
    assert gradient == pytest.approx(math.exp(20), rel=1e-5)
  value, gradient = jax.value_and_grad(k3)(jnp.float32(-distance))
  assert value == pytest.approx(distance - 1, rel=1e-5)
  assert gradient == pytest.approx(-1, rel=1e-5)


def test_mean_and_standard_error():
  valid = np.array([[True, True, False], [True, False, True]])
  nats = np.where(valid, [[1.0, 2.0, 0], [4.0, 0, -3.0]], np.nan)
  mean, error = kl.mean_and_standard_error(nats.astype(np.float32), valid)
  numbers = [1.0, 2.0, 4.0, -3.0]
  assert float(mean) == pytest.approx(1.0)
  assert float(error) == pytest.approx(np.std(numbers, ddof=1) / 2, rel=1e-6)


def test_two_responses_have_a_standard_error():
  _, error = kl.mean_and_standard_error(
    np.array([[1.0, 4.0]], np.float32), np.ones((1, 2), bool)
  )
  assert float(error) == pytest.approx(np.std([1, 4], ddof=1) / np.sqrt(2))


@pytest.mark.parametrize('count', [0, 1])
def test_noise_of_one_response_is_unknown(count):
  valid = np.arange(2)[None] < count
  mean, error = kl.mean_and_standard_error(np.ones((1, 2), np.float32), valid)
  assert mean == count
  assert error == np.inf
