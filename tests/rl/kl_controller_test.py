import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.rl import kl_controller

update = jax.jit(
  lambda beta, kl, responses: kl_controller.AdaptiveKl(
    target=6.0, horizon=1000
  ).update(beta, kl, responses)
)


def _update(beta, kl, responses=128):
  return update(jnp.float32(beta), jnp.float32(kl), jnp.int32(responses))


# Not so small that float32 makes a 0 of it.
_BETAS = st.one_of(st.just(0.0), st.floats(1e-6, 1))


@hypothesis.given(_BETAS, st.floats(-50, 50), st.integers(1, 3000))
def test_update_matches_the_formula(beta, kl, responses):
  error = min(max(kl / 6.0 - 1, -0.2), 0.2)
  expected = beta * (1 + error * min(responses / 1000, 1))
  least = min(beta, 1e-4) if beta else 1e-4
  expected = min(max(expected, least), 1.0)
  assert float(_update(beta, kl, responses)) == pytest.approx(
    expected, rel=1e-4, abs=1e-6
  )


def test_direction():
  assert _update(0.1, 6.5) > 0.1
  assert _update(0.1, 5.5) < 0.1
  assert float(_update(0.1, 6.0)) == pytest.approx(0.1)


def test_one_wild_estimate_counts_no_more_than_a_fifth_too_much():
  assert _update(0.1, 1e6) == _update(0.1, 7.3)
  assert _update(0.1, -1e6) == _update(0.1, 4.0)


def test_beta_stays_below_1():
  assert _update(0.99, 100.0, 10_000) == 1


@pytest.mark.parametrize('responses', [1_000, 5_000, 10_000, 10**6])
def test_a_rollout_longer_than_the_horizon_counts_as_one_horizon(responses):
  # By the paper's formula the error times responses over the horizon is up to
  # -200: β would be 0 at once, and stay there.
  assert float(_update(0.5, 0.0, responses)) == pytest.approx(0.4)
  assert float(_update(0.5, 60.0, responses)) == pytest.approx(0.6)


def test_beta_comes_back_however_long_the_kl_was_too_small():
  beta = jnp.float32(0.5)
  for _ in range(2000):
    beta = _update(beta, 0.0, 10_000)
  assert float(beta) == pytest.approx(1e-4)
  for _ in range(50):
    beta = _update(beta, 60.0, 10_000)
  assert float(beta) > 0.5


def test_a_beta_below_the_least_does_not_fall():
  assert _update(1e-5, 0.0) == jnp.float32(1e-5)
  assert _update(1e-5, 60.0) > 1e-5
  # Of a checkpoint in which it had fallen to 0.
  assert float(_update(0.0, 60.0)) == pytest.approx(1e-4)


@pytest.mark.parametrize('kl', [np.nan, np.inf, -np.inf])
def test_a_kl_that_is_not_finite_changes_nothing(kl):
  assert _update(0.125, kl) == 0.125


def test_holds_the_target():
  # A policy whose KL falls as β rises: the loop settles where KL = target.
  beta = jnp.float32(0.02)
  for _ in range(400):
    beta = _update(beta, 0.6 / float(beta))
  assert 0.6 / float(beta) == pytest.approx(6.0, rel=0.01)


def test_defaults():
  assert kl_controller.AdaptiveKl(6.0) == kl_controller.AdaptiveKl(
    target=6.0,
    horizon=10_000,
    least_beta=1e-4,
  )


@pytest.mark.parametrize(
  'setting', [{'target': 0.0}, {'horizon': -1}, {'least_beta': 0.0}]
)
def test_bad_settings_are_named(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigError, match=rf'AdaptiveKl\.{name} is'):
    kl_controller.AdaptiveKl(**{'target': 6.0, **setting})
