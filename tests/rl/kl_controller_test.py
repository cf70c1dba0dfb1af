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


@hypothesis.given(st.floats(0, 1), st.floats(-50, 50), st.integers(1, 500))
def test_update_matches_the_formula(beta, kl, responses):
  error = min(max(kl / 6.0 - 1, -0.2), 0.2)
  expected = min(max(beta * (1 + error * responses / 1000), 0.0), 1.0)
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


def test_beta_stays_between_0_and_1():
  assert _update(0.99, 100.0, 10_000) == 1
  # The error times responses over the horizon is -2: below 0 but for the cut.
  assert _update(0.5, 0.0, 10_000) == 0


@pytest.mark.parametrize('kl', [np.nan, np.inf, -np.inf])
def test_a_kl_that_is_not_finite_changes_nothing(kl):
  assert _update(0.125, kl) == 0.125


def test_holds_the_target():
  # A policy whose KL falls as β rises: the loop settles where KL = target.
  beta = jnp.float32(0.02)
  for _ in range(400):
    beta = _update(beta, 0.6 / float(beta))
  assert 0.6 / float(beta) == pytest.approx(6.0, rel=0.01)


@pytest.mark.parametrize('setting', [{'target': 0.0}, {'horizon': -1}])
def test_bad_settings_are_named(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigError, match=rf'AdaptiveKl\.{name} is'):
    kl_controller.AdaptiveKl(**{'target': 6.0, **setting})
