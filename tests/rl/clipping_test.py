import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.rl import clipping


def _one(x):
  return np.full((1, 1, 1), x, np.float32)


@hypothesis.given(st.floats(-1, 1, width=32), st.floats(-3, 3, width=32))
def test_policy_loss_is_never_below_the_unclipped_one(distance, advantage):
  result = clipping.policy_loss(_one(math.exp(distance)), _one(advantage), 0.2)
  ratio = math.exp(distance)
  held = min(max(ratio, 0.8), 1.2)
  free, held = -ratio * advantage, -held * advantage
  loss = float(result.loss[0, 0, 0])
  assert loss == pytest.approx(max(free, held), rel=1e-5, abs=1e-6)
  if 0.81 < ratio < 1.19:
    assert result.is_clipped[0, 0, 0] == 0
  if abs(free - held) > 1e-5:
    assert result.is_clipped[0, 0, 0] == (held > free)


@pytest.mark.parametrize(
  'value, old, target, clip, expected',
  [
    (1.0, 0.0, 2.0, None, 1.0),
    (1.0, 0.0, 2.0, 0.2, 1.8**2),  # Held at 0.2, which is worse.
    (1.0, 0.0, -1.0, 0.2, 4.0),  # Held at 0.2, which would be better.
    (0.1, 0.0, 2.0, 0.2, 1.9**2),  # Not held.
  ],
)
def test_value_loss_takes_the_worse(value, old, target, clip, expected):
  loss = clipping.value_loss(_one(value), _one(old), _one(target), clip)
  assert float(loss[0, 0, 0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  'advantage, ratio, low, high, clipped',
  [
    (1.0, 1.3, 0.2, 0.28, True),
    (1.0, 1.25, 0.2, 0.28, False),
    (1.0, 1.25, 0.2, None, True),
    (-1.0, 0.75, 0.2, 0.28, True),
    (-1.0, 0.75, 0.28, 0.2, False),
    (-1.0, 1.9, 0.2, 0.28, False),  # Pulled back, from however far.
    (1.0, 0.1, 0.2, 0.28, False),
  ],
)
def test_the_upper_bound_is_one_of_its_own(
  advantage, ratio, low, high, clipped
):
  def loss(ratio):
    result = clipping.policy_loss(ratio, _one(advantage), low, high)
    return jnp.sum(result.loss), result.is_clipped

  slope, is_clipped = jax.grad(loss, has_aux=True)(_one(ratio))
  assert float(is_clipped[0, 0, 0]) == clipped
  assert float(slope[0, 0, 0]) == (0.0 if clipped else -advantage)


@pytest.mark.parametrize(
  'ratio, low, high, weight',
  [
    (1.1, 0.2, None, 1.1),
    (3.0, 0.2, 0.5, 1.5),
    (0.1, 0.2, 0.5, 0.8),
    (0.1, 1.0, 4.0, 0.1),
    (9.0, 1.0, 4.0, 5.0),
  ],
)
def test_cispo_learns_from_clipped_tokens_too(ratio, low, high, weight):
  def loss(logprob):
    ratio = jnp.exp(logprob - old)
    result = clipping.weighted_log_loss(logprob, ratio, _one(-2.0), low, high)
    return jnp.sum(result.loss), result.is_clipped

  logprob = _one(-1.5)
  old = logprob - np.float32(math.log(ratio))
  slope, is_clipped = jax.grad(loss, has_aux=True)(logprob)
  assert float(slope[0, 0, 0]) == pytest.approx(2 * weight, rel=1e-5)
  assert float(is_clipped[0, 0, 0]) == (weight != ratio)


def test_the_ratio_of_a_sequence_is_a_geometric_mean():
  rng = np.random.default_rng(0)
  new, old = rng.normal(size=(2, 2, 2, 4)).astype(np.float32)
  lengths = np.array([[4, 1], [2, 0]])
  mask = np.arange(4) < lengths[..., None]
  actual = clipping.sequence_ratio(
    np.where(mask, new, np.nan), np.where(mask, old, np.nan), mask
  )
  for b, r in np.ndindex(2, 2):
    product = 1.0
    for t in range(lengths[b, r]):
      product *= math.exp(float(new[b, r, t])) / math.exp(float(old[b, r, t]))
    wanted = product ** (1 / max(lengths[b, r], 1))
    np.testing.assert_allclose(actual[b, r], wanted, rtol=1e-5)
