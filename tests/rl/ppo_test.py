import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy

from perlhf_jax.core import errors
from perlhf_jax.rl import algorithm
from perlhf_jax.rl import ppo
from perlhf_jax.rl import reinforce

EVERY_RESPONSE = range(tiny_policy.NUM_RESPONSES)


def test_advantages_are_white_over_the_batch():
  batch = tiny_policy.episodes(EVERY_RESPONSE)
  targets = ppo.Ppo().targets(batch, 0.1)
  kept = np.asarray(targets.advantages)[np.asarray(batch.mask)]
  assert kept.mean() == pytest.approx(0, abs=1e-6)
  assert kept.std() == pytest.approx(1, rel=1e-5)


def test_lambda_1_aims_values_at_the_returns_of_reinforce():
  batch = tiny_policy.episodes(EVERY_RESPONSE)
  np.testing.assert_allclose(
    ppo.Ppo(gae_lambda=1.0).targets(batch, 0.1).returns,
    reinforce.Reinforce().targets(batch, 0.1).returns,
    rtol=1e-5,
    atol=1e-6,
  )


def test_first_update_is_the_unclipped_policy_gradient():
  batch = tiny_policy.episodes(EVERY_RESPONSE)
  method = ppo.Ppo(value_coefficient=0.0)
  targets = method.targets(batch, 0.1)

  def loss(logprobs):
    outputs = algorithm.Outputs(logprobs, batch.values)
    return method.loss(outputs, batch, targets, 0.1).loss_sum

  np.testing.assert_allclose(
    jax.grad(loss)(batch.logprobs), -targets.advantages, rtol=1e-5
  )


@pytest.mark.parametrize('value_clip', [0.2, None])
def test_value_clip_holds_values_that_have_moved_towards_the_target(value_clip):
  batch = tiny_policy.episodes(EVERY_RESPONSE)
  method = ppo.Ppo(value_clip=value_clip)
  targets = method.targets(batch, 0.0)
  # Further than the clip allows, but not past the target.
  distance = targets.returns - batch.values
  far = np.asarray(batch.mask) & (np.abs(distance) > 0.5)
  assert far.sum() >= 2
  values = batch.values + jnp.where(far, 0.8 * distance, 0.0)

  def loss(values):
    outputs = algorithm.Outputs(batch.logprobs, values)
    return method.loss(outputs, batch, targets, 0.0).loss_sum

  gradient = np.asarray(jax.grad(loss)(values))[far]
  assert (gradient == 0).all() if value_clip else (gradient != 0).all()


def test_every_token_weighs_the_same():
  batch = tiny_policy.episodes(EVERY_RESPONSE)
  method = ppo.Ppo()
  outputs = algorithm.Outputs(batch.logprobs, batch.values)
  result = method.loss(outputs, batch, method.targets(batch, 0.1), 0.1)
  assert result.weight_sum == tiny_policy.MASK.sum()
  # At a ratio of 1 the policy loss is minus the mean advantage, which is 0.
  assert float(result.metric_sums['policy_loss']) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
  'setting',
  [
    {'clip_ratio': 0.0},
    {'value_clip': -0.2},
    {'value_coefficient': -1.0},
    {'gamma': 1.1},
    {'gae_lambda': -0.1},
    {'epochs': 0},
    {'minibatches': 0},
  ],
)
def test_bad_settings_are_named(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigError, match=rf'Ppo\.{name} is'):
    ppo.Ppo(**setting)
