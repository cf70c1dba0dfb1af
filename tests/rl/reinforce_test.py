import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy

from perlhf_jax.core import errors
from perlhf_jax.rl import algorithm
from perlhf_jax.rl import reinforce

SINGLES = [(i,) for i in range(tiny_policy.NUM_RESPONSES)]


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
def test_expected_update_climbs_the_objective(beta):
  # Over all responses, weighted by their probability: the gradient of the
  # loss is minus that of J, whatever the baseline.
  def objective(logits):
    score = tiny_policy.expected_score(logits)
    return (1 - beta) * score - beta * tiny_policy.kl(logits)

  actual = tiny_policy.expected_gradient(
    reinforce.Reinforce(value_coefficient=0.0), SINGLES, beta
  )
  expected = -jax.grad(objective)(tiny_policy.LOGITS)
  assert np.abs(expected).max() > 0.01
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_constant_score_moves_nothing_in_expectation():
  scores = jnp.full(tiny_policy.NUM_RESPONSES, 3.0)
  gradient = tiny_policy.expected_gradient(
    reinforce.Reinforce(), SINGLES, 0.0, scores
  )
  np.testing.assert_allclose(gradient, np.zeros((3, 3)), atol=1e-6)
  # Each response by itself would move the policy.
  lone = tiny_policy.expected_gradient(
    reinforce.Reinforce(), SINGLES[:1], 0.0, scores
  )
  assert np.abs(lone).max() > 0.1


def test_values_learn_the_expected_score():
  # Gradient descent on the value loss alone, over all responses.
  method = reinforce.Reinforce()
  weights = tiny_policy.probabilities(tiny_policy.LOGITS)
  batch = tiny_policy.episodes(range(tiny_policy.NUM_RESPONSES))
  # Without KL in the rewards.
  batch = batch._replace(ref_logprobs=batch.logprobs)
  targets = method.targets(batch, 0.0)
  picked = tiny_policy.STATES

  @jax.jit
  def update(values):
    def loss(values):
      # The weight of a response cannot enter a sum of losses but through it.
      def one(i):
        part = jax.tree.map(
          lambda x: x[:, i][:, None] if jnp.ndim(x) else x, (batch, targets)
        )
        outputs = algorithm.Outputs(
          part[0].logprobs, values[jnp.array(picked)[i]][None, None]
        )
        return method.loss(outputs, *part, 0.0).metric_sums['value_loss']

      return sum(w * one(i) for i, w in enumerate(weights))

    return values - 0.3 * jax.grad(loss)(values)

  values = jnp.zeros(3)
  for _ in range(200):
    values = update(values)
  start = tiny_policy.EOS  # The state in which every response begins.
  expected = tiny_policy.expected_score(tiny_policy.LOGITS)
  assert float(values[start]) == pytest.approx(float(expected), rel=1e-3)


def test_value_coefficient_weighs_the_value_loss_alone():
  batch = tiny_policy.episodes(range(4))
  outputs = algorithm.Outputs(batch.logprobs, batch.values + 1)
  results = {}
  for coefficient in 0.0, 2.0:
    method = reinforce.Reinforce(value_coefficient=coefficient)
    targets = method.targets(batch, 0.1)
    results[coefficient] = method.loss(outputs, batch, targets, 0.1)
  value_loss = results[0.0].metric_sums['value_loss']
  assert results[2.0].metric_sums['value_loss'] == value_loss
  assert float(results[2.0].loss_sum) == pytest.approx(
    float(results[0.0].loss_sum + 2 * value_loss), rel=1e-5
  )


def test_defaults_are_those_of_the_paper():
  method = reinforce.Reinforce()
  assert method.needs_value
  assert (method.epochs, method.minibatches, method.min_samples) == (1, 1, 1)
  assert not method.normalize_advantages


def test_bad_value_coefficient():
  with pytest.raises(errors.ConfigError, match=r'Reinforce\.value_coefficient'):
    reinforce.Reinforce(value_coefficient=-1.0)
