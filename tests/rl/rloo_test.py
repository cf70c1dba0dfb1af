import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy

from perlhf_jax.rl import rloo

PAIRS = list(itertools.product(range(tiny_policy.NUM_RESPONSES), repeat=2))


@pytest.mark.parametrize('beta', [0.0, 0.3])
def test_expected_update_climbs_the_objective(beta):
  # The baseline is another draw, which leaves the gradient unbiased.
  def objective(logits):
    score = tiny_policy.expected_score(logits)
    return (1 - beta) * score - beta * tiny_policy.kl(logits)

  actual = tiny_policy.expected_gradient(rloo.Rloo(), PAIRS, beta)
  expected = -jax.grad(objective)(tiny_policy.LOGITS)
  assert np.abs(expected).max() > 0.01
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('score', [0.1, -7.3, 1e4])
def test_constant_score_has_no_advantage(score):
  scores = jnp.full(tiny_policy.NUM_RESPONSES, score)
  batch = tiny_policy.episodes([0, 1, 4], scores, has_values=False)
  advantages = rloo.Rloo().targets(batch, 0.0).advantages
  assert (np.asarray(advantages) == 0).all()


def test_two_responses_are_compared_with_each_other():
  batch = tiny_policy.episodes([0, 3], has_values=False)
  advantages = np.asarray(rloo.Rloo().targets(batch, 0.0).advantages)
  lead = float(tiny_policy.SCORES[0] - tiny_policy.SCORES[3])
  np.testing.assert_allclose(
    advantages[0], [[lead, 0.0], [-lead, -lead]], rtol=1e-5
  )


def test_needs_no_value():
  assert not rloo.Rloo().needs_value
  assert rloo.Rloo().min_samples == 2
