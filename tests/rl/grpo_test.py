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


@pytest.mark.parametrize('kl_beta', [0.0, 0.25, 1.0])
def test_the_loss_matches_loops(kl_beta):
  picked, clip_ratio = [0, 3, 5], 0.2
  batch = tiny_policy.episodes(picked, has_values=False)
  # A policy that has moved: at the first update the scores cancel.
  shift = np.array([[0.1, 0.0], [-0.15, 0.4], [0.3, -0.05]], np.float32)
  logprobs = batch.logprobs + shift
  method = grpo.Grpo(clip_ratio=clip_ratio)
  result = method.loss(
    algorithm.Outputs(logprobs, None),
    batch,
    method.targets(batch, kl_beta),
    kl_beta,
  )
  scores = np.float64(tiny_policy.SCORES)[picked]
  advantages = (scores - scores.mean()) / (scores.std() + method.epsilon)
  policy_loss = kl_loss = 0.0
  for n, advantage in enumerate(advantages):
    tokens = np.flatnonzero(np.asarray(batch.mask)[0, n])
    for t in tokens:
      ratio = np.exp(float(shift[n, t]))
      clipped = min(max(ratio, 1 - clip_ratio), 1 + clip_ratio)
      gain = min(ratio * advantage, clipped * advantage)
      policy_loss -= gain / len(tokens)
      x = float(batch.ref_logprobs[0, n, t] - logprobs[0, n, t])
      kl_loss += (np.exp(x) - 1 - x) / len(tokens)
  sums = result.metric_sums
  assert float(sums['policy_loss']) == pytest.approx(policy_loss, rel=1e-4)
  assert float(sums['kl_loss']) == pytest.approx(kl_loss, rel=1e-4)
  assert min(abs(policy_loss), kl_loss) > 0.01
  expected = (1 - kl_beta) * policy_loss + kl_beta * kl_loss
  assert float(result.loss_sum) == pytest.approx(expected, rel=1e-4)


def _gradients(normalize, factor):
  """Mean gradients of the score's part and of the KL's part."""
  method = grpo.Grpo(normalize=normalize, epsilon=1e-12)
  scores = factor * tiny_policy.SCORES
  return [
    np.asarray(tiny_policy.expected_gradient(method, PAIRS, beta, scores))
    for beta in (0.0, 1.0)
  ]


def test_without_scaling_beta_weighs_scores_as_large_as_they_are():
  score, kl = _gradients(normalize=None, factor=1.0)

  def objective(logits):
    # Each response by the mean of its tokens, as the loss takes it; of a pair
    # the baseline holds half of the response's own score.
    p = tiny_policy.probabilities(tiny_policy.LOGITS)
    gain = tiny_policy.SCORES - p @ tiny_policy.SCORES
    mask = tiny_policy.MASK
    means = jnp.sum(
      jnp.where(mask, tiny_policy.logprobs(logits), 0), axis=-1
    ) / mask.sum(axis=-1)
    return 0.5 * jnp.sum(p * gain * means)

  np.testing.assert_allclose(
    score, -jax.grad(objective)(tiny_policy.LOGITS), atol=1e-6
  )
  larger, same_kl = _gradients(normalize=None, factor=10.0)
  np.testing.assert_allclose(larger, 10 * score, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(same_kl, kl)


def test_with_scaling_beta_weighs_standard_deviations():
  score, kl = _gradients(normalize='group', factor=1.0)
  for factor in 0.1, 10.0:
    other, same_kl = _gradients(normalize='group', factor=factor)
    np.testing.assert_allclose(other, score, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(same_kl, kl)
  assert np.abs(score).max() > 0.01


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
  [
    {'clip_ratio': 0.0},
    {'clip_ratio_high': -0.1},
    {'ratio': 'word'},
    {'surrogate': 'ppo'},
    {'aggregation': 'mean'},
    {'normalize': 'prompt'},
    {'kl_estimator': 'k1'},
    {'epsilon': 0},
    {'epochs': 0},
    {'minibatches': -1},
  ],
)
def test_bad_settings_are_named(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigError, match=rf'Grpo\.{name} is'):
    grpo.Grpo(**setting)
