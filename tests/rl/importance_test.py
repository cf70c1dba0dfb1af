"""A policy sampled in bfloat16 and trained in float32."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_models
import tiny_roles

from perlhf_jax.core import errors
from perlhf_jax.rl import grpo
from perlhf_jax.rl import importance
from perlhf_jax.rl import rloo
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import state as state_lib
from perlhf_jax.rl import step
from perlhf_jax.training import optimizers

BETA = 0.2
# Below some weights of this rollout, so that they are cut.
CAP = 1.01
METHODS = {'rloo': rloo.Rloo(), 'grpo': grpo.Grpo(normalize=None)}


@pytest.fixture(scope='module')
def roles():
  return tiny_roles.make()


@pytest.fixture(scope='module')
def samples(roles):
  """Samples of a bfloat16 copy of the policy, assessed, with random scores."""
  models, trainable, frozen = roles
  config = dataclasses.replace(tiny_roles.CONFIG, dtype='bfloat16')
  coarse, _ = tiny_models.adapted(tiny_roles.LORA, config, 1)
  sampler = dataclasses.replace(models, policy=coarse, value=None)
  rollout = tiny_roles.make_rollout(sampler)
  policy = {'policy': trainable['policy']}
  samples = rollout(policy, frozen, 0, tiny_roles.prompts())
  samples = jax.tree.map(np.asarray, samples)
  rng = np.random.default_rng(1)
  shape = samples.response_tokens.shape[:2]
  # The encoding is the sampler's, in bfloat16.
  return samples.replace(
    scores=rng.normal(size=shape).astype(np.float32), encoding=None
  )


def _learn(name, roles, samples, cap):
  """Returns the negative gradient of the policy, and metrics."""
  models, trainable, frozen = roles
  trainable = {'policy': trainable['policy']}
  optimizer = optimizers.by_name({'policy': optax.sgd(1.0)})
  settings = settings_lib.Settings(
    METHODS[name], tiny_roles.SAMPLING, BETA, importance_cap=cap
  )
  learn = functools.partial(
    step.learn, models, settings, optimizer, lambda _: jnp.float32(1)
  )
  state, metrics = jax.jit(learn)(
    state_lib.create(trainable, optimizer, BETA),
    {'params': frozen['params']},
    samples,
  )
  moved = jax.tree.map(
    lambda new, old: np.asarray(new) - np.asarray(old),
    state.trainable['policy'],
    trainable['policy'],
  )
  return moved, metrics


def _trainers(roles, samples):
  """Log-probabilities of the trainer, and a function that pulls gradients."""
  models, trainable, frozen = roles
  frozen = {'params': frozen['params']}

  def logprobs(policy):
    outputs = tiny_roles.outputs(models, frozen, {'policy': policy}, samples)
    return outputs.logprobs

  return jax.vjp(logprobs, trainable['policy'])


@pytest.mark.parametrize('name', METHODS)
def test_the_weights_restore_the_first_ratio(name, roles, samples):
  _, plain = _learn(name, roles, samples, None)
  _, corrected = _learn(name, roles, samples, 100.0)
  assert plain['ratio_deviation'] > 1e-3
  assert corrected['ratio_deviation'] < 1e-5
  assert not {'sampler_deviation', 'importance_capped'} & set(plain)
  new, _ = _trainers(roles, samples)
  mask = samples.response_mask
  gaps = np.float64(new)[mask] - np.float64(samples.logprobs)[mask]
  mismatch = np.mean([abs(math.exp(gap) - 1) for gap in gaps])
  np.testing.assert_allclose(
    corrected['sampler_deviation'], mismatch, rtol=1e-3
  )
  assert corrected['importance_capped'] == 0
  _, capped = _learn(name, roles, samples, CAP)
  share = np.mean([math.exp(gap) > CAP for gap in gaps])
  assert 0.05 < share < 0.95
  np.testing.assert_allclose(capped['importance_capped'], share, rtol=1e-6)


@pytest.mark.parametrize('name', METHODS)
def test_a_weighted_update_equals_loops(name, roles, samples):
  new, pull_back = _trainers(roles, samples)
  new, old, ref = (
    np.float64(x) for x in (new, samples.logprobs, samples.ref_logprobs)
  )
  lengths = samples.response_mask.sum(axis=-1)
  batch, responses = samples.scores.shape

  def slope(b, r, t):
    """The derivative of the loss by a log-probability, without its weight."""
    scores = samples.scores[b]
    if name == 'grpo':
      advantage = scores[r] - sum(scores) / responses
      reverse = 1 - math.exp(ref[b, r, t] - new[b, r, t])
      loss = -(1 - BETA) * advantage + BETA * reverse
      return loss / lengths[b, r]
    totals = [
      (1 - BETA) * scores[i]
      - BETA * sum(new[b, i, s] - ref[b, i, s] for s in range(lengths[b, i]))
      for i in range(responses)
    ]
    others = sum(totals) - totals[r]
    return -(totals[r] - others / (responses - 1))

  slopes = np.zeros(new.shape, np.float32)
  for b, r in np.ndindex(batch, responses):
    for t in range(lengths[b, r]):
      weight = min(math.exp(new[b, r, t] - old[b, r, t]), CAP)
      slopes[b, r, t] = weight * slope(b, r, t) / (batch * responses)
  (wanted,) = pull_back(slopes)
  moved, _ = _learn(name, roles, samples, CAP)
  unweighted, _ = _learn(name, roles, samples, None)
  pairs = zip(*map(jax.tree.leaves, (moved, wanted, unweighted)), strict=True)
  differences = []
  for actual, gradient, plain in pairs:
    np.testing.assert_allclose(actual, -gradient, rtol=1e-3, atol=1e-5)
    differences.append(np.abs(actual - plain).max())
  assert max(differences) > 1e-4


def test_weights_scale_gradients_and_keep_values():
  rng = np.random.default_rng(0)
  x, weights, slopes = rng.normal(size=(3, 2, 2, 3)).astype(np.float32)
  value, pull_back = jax.vjp(lambda x: importance.weigh_gradient(x, weights), x)
  np.testing.assert_array_equal(value, x)
  np.testing.assert_allclose(pull_back(slopes)[0], slopes * weights, rtol=1e-6)
  assert importance.weigh_gradient(value, None) is value


@pytest.mark.parametrize('cap', [0.5, -1.0, float('nan')])
def test_a_cap_below_1_is_an_error(cap):
  with pytest.raises(errors.ConfigError, match=r'Settings\.importance_cap is'):
    settings_lib.Settings(
      rloo.Rloo(), tiny_roles.SAMPLING, BETA, importance_cap=cap
    )
