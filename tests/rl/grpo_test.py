import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy

from perlhf_jax.core import errors
from perlhf_jax.rl import algorithm
from perlhf_jax.rl import grpo

PAIRS = list(itertools.product(range(tiny_policy.NUM_RESPONSES), repeat=2))


@pytest.mark.parametrize('score', [0.1, -7.3, 1e4])
def test_constant_score_has_no_advantage(score):
  scores = jnp.full(tiny_policy.NUM_RESPONSES, score)
  batch = tiny_policy.episodes([0, 1, 4], scores, has_values=False)
  advantages = grpo.Grpo(epsilon=1e-12).targets(batch, 0.0).advantages
  assert (np.asarray(advantages) == 0).all()


def test_constant_score_moves_nothing():
  scores = jnp.full(tiny_policy.NUM_RESPONSES, 0.1)
  gradient = tiny_policy.expected_gradient(grpo.Grpo(), PAIRS, 0.0, scores)
  assert (np.asarray(gradient) == 0).all()
  moved = tiny_policy.expected_gradient(grpo.Grpo(), PAIRS, 0.0)
  assert np.abs(moved).max() > 0.01


def test_beta_weighs_score_against_kl():
  batch = tiny_policy.episodes([0, 3, 5], has_values=False)
  outputs = algorithm.Outputs(batch.logprobs, None)
  method = grpo.Grpo()
  targets = method.targets(batch, 0.25)
  result = method.loss(outputs, batch, targets, 0.25)
  sums = result.metric_sums
  assert float(sums['kl_loss']) > 0.01
  expected = 0.75 * sums['policy_loss'] + 0.25 * sums['kl_loss']
  assert float(result.loss_sum) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize('clip_ratio', [0.1, 0.2])
@pytest.mark.parametrize('sign', [1, -1])
def test_a_token_beyond_the_clip_has_no_gradient(sign, clip_ratio):
  batch = tiny_policy.episodes([0, 3], has_values=False)
  lead = tiny_policy.SCORES[0] > tiny_policy.SCORES[3]
  # The better response has become likelier, the worse less likely, or the
  # other way round, in which case it is pulled back.
  better = np.array([1.0, -1.0]) if lead else np.array([-1.0, 1.0])
  shift = sign * 2 * clip_ratio * better[None, :, None]
  logprobs = batch.logprobs + jnp.array(shift, jnp.float32)
  method = grpo.Grpo(clip_ratio=clip_ratio)
  targets = method.targets(batch, 0.0)

  def loss(logprobs):
    outputs = algorithm.Outputs(logprobs, None)
    result = method.loss(outputs, batch, targets, 0.0)
    return result.loss_sum, result

  gradient, result = jax.grad(loss, has_aux=True)(logprobs)
  is_clipped = sign == 1
  assert result.metric_sums['clip_fraction'] == (2 if is_clipped else 0)
  kept = np.asarray(gradient)[np.asarray(batch.mask)]
  assert (kept == 0).all() if is_clipped else (kept != 0).all()


def test_every_response_weighs_the_same():
  # The first response has one token, the other two.
  batch = tiny_policy.episodes([0, 3], has_values=False)
  method = grpo.Grpo()
  targets = method.targets(batch, 0.0)

  def loss(logprobs):
    outputs = algorithm.Outputs(logprobs, None)
    return method.loss(outputs, batch, targets, 0.0).loss_sum

  short, long = np.asarray(jax.grad(loss)(batch.logprobs))[0]
  assert short[1] == 0
  assert short[0] == pytest.approx(-long.sum(), rel=1e-5)
  assert long[0] == pytest.approx(long[1])


@pytest.mark.parametrize(
  'setting',
  [{'clip_ratio': 0.0}, {'epsilon': 0}, {'epochs': 0}, {'minibatches': -1}],
)
def test_bad_settings_are_named(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigError, match=rf'Grpo\.{name} is'):
    grpo.Grpo(**setting)
