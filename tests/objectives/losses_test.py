import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.objectives import losses

BATCH, LENGTH, VOCAB = 3, 5, 7


def _tokens(seed=0, scale=3.0):
  rng = np.random.default_rng(seed)
  logits = scale * rng.normal(size=(BATCH, LENGTH, VOCAB)).astype(np.float32)
  targets = rng.integers(0, VOCAB, (BATCH, LENGTH), np.int32)
  weights = np.zeros((BATCH, LENGTH), np.float32)
  for row, length in enumerate([5, 2, 0]):
    weights[row, :length] = 1
  weights[0, 1] = 0.5
  return logits, targets, weights


def _softmax(logits):
  exponentials = [math.exp(logit) for logit in logits]
  return [e / sum(exponentials) for e in exponentials]


def _reference_loss(logits, targets, weights, label_smoothing, z_loss):
  """T5X's loss from its definition: a KL to the smoothed target, and log(Z)^2.

  The cross-entropy to the smoothed target less that target's entropy is the
  KL divergence between the two.
  """
  loss_sum = z_loss_sum = correct_sum = weight_sum = 0.0
  for b in range(BATCH):
    for t in range(LENGTH):
      row = [float(logit) for logit in logits[b, t]]
      weight = float(weights[b, t])
      kl = 0.0
      for v, predicted in enumerate(_softmax(row)):
        wanted = label_smoothing / (VOCAB - 1)
        if v == targets[b, t]:
          wanted = 1 - label_smoothing
        if wanted:
          kl += wanted * math.log(wanted / predicted)
      z = z_loss * math.log(sum(math.exp(logit) for logit in row)) ** 2
      loss_sum += weight * (kl + z)
      z_loss_sum += weight * z
      correct_sum += weight * (max(row) == row[targets[b, t]])
      weight_sum += weight
  return loss_sum, z_loss_sum, correct_sum, weight_sum


def _cross_entropy(logits, targets, weights, label_smoothing=0.0, z_loss=0.0):
  return losses.weighted_sums(
    losses.token_losses(logits, targets, label_smoothing, z_loss), weights
  )


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1, 0.5])
@pytest.mark.parametrize('z_loss', [0.0, 1e-4, 0.3])
def test_cross_entropy_matches_loops(label_smoothing, z_loss):
  logits, targets, weights = _tokens()
  result = _cross_entropy(logits, targets, weights, label_smoothing, z_loss)
  expected = _reference_loss(logits, targets, weights, label_smoothing, z_loss)
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  assert all(field.dtype == jnp.float32 for field in result)


@pytest.mark.parametrize('label_smoothing', [0.0, 0.2])
def test_perfect_prediction_has_no_loss(label_smoothing):
  _, targets, weights = _tokens()
  wanted = np.full((BATCH, LENGTH, VOCAB), label_smoothing / (VOCAB - 1))
  np.put_along_axis(wanted, targets[..., None], 1 - label_smoothing, axis=-1)
  logits = np.log(np.maximum(wanted, 1e-30)).astype(np.float32)
  result = _cross_entropy(logits, targets, weights, label_smoothing)
  assert result.loss_sum == pytest.approx(0, abs=1e-5)
  assert result.correct_sum == result.weight_sum


def test_padding_content_is_ignored():
  logits, targets, weights = _tokens()
  expected = _cross_entropy(logits, targets, weights, 0.1, 1e-2)
  is_padding = weights == 0
  for garbage in np.nan, np.inf, 1e20:
    dirty = logits.copy()
    dirty[is_padding] = garbage
    actual = _cross_entropy(
      dirty, np.where(is_padding, 3, targets), weights, 0.1, 1e-2
    )
    np.testing.assert_array_equal(actual, expected)


def test_padding_length_is_ignored():
  logits, targets, weights = _tokens()
  pad = ((0, 1), (0, 4))
  actual = _cross_entropy(
    np.pad(logits, (*pad, (0, 0))), np.pad(targets, pad), np.pad(weights, pad)
  )
  expected = _cross_entropy(logits, targets, weights)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


@hypothesis.given(st.floats(-50, 50))
def test_cross_entropy_ignores_a_shift_of_logits(shift):
  logits, targets, weights = _tokens()
  np.testing.assert_allclose(
    _cross_entropy(logits + np.float32(shift), targets, weights, 0.1),
    _cross_entropy(logits, targets, weights, 0.1),
    rtol=1e-4,
  )


def test_token_logprobs_match_loops():
  logits, targets, _ = _tokens()
  expected = [
    [
      math.log(_softmax([float(x) for x in logits[b, t]])[targets[b, t]])
      for t in range(LENGTH)
    ]
    for b in range(BATCH)
  ]
  np.testing.assert_allclose(
    losses.token_logprobs(logits, targets), expected, rtol=1e-5
  )


def test_token_logprobs_of_bfloat16_and_huge_logits():
  logits, targets, _ = _tokens(scale=1e4)
  logprobs = losses.token_logprobs(jnp.array(logits, jnp.bfloat16), targets)
  assert logprobs.dtype == jnp.float32
  assert np.isfinite(logprobs).all()
  assert (np.asarray(logprobs) <= 0).all()


def test_cross_entropy_gradient_is_probability_less_target():
  logits, targets, weights = _tokens()
  gradient = jax.grad(lambda x: _cross_entropy(x, targets, weights).loss_sum)(
    jnp.array(logits)
  )
  expected = np.array(
    [[_softmax(row) for row in rows] for rows in logits.astype(float)]
  )
  for b in range(BATCH):
    for t in range(LENGTH):
      expected[b, t, targets[b, t]] -= 1
  np.testing.assert_allclose(
    gradient, expected * weights[..., None], rtol=1e-4, atol=1e-6
  )


SCORES = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6)


def _softplus(x):
  """-log σ(-x), in double precision."""
  return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


@hypothesis.given(SCORES, st.integers(0, 99), st.sampled_from([0.0, 0.01]))
def test_pairwise_loss_matches_loops(chosen, seed, centering):
  rng = np.random.default_rng(seed)
  chosen = np.array(chosen, np.float32)
  rejected = rng.normal(size=chosen.shape).astype(np.float32)
  margins = rng.uniform(0, 2, chosen.shape).astype(np.float32)
  expected = [
    _softplus(-(float(c) - float(r) - float(m)))
    + centering * (float(c) + float(r)) ** 2
    for c, r, m in zip(chosen, rejected, margins, strict=True)
  ]
  actual = losses.pairwise_loss(chosen, rejected, margins, centering)
  # The absolute term is a float32's rounding of a lead of size 1e4.
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@hypothesis.given(SCORES, st.floats(0, 1))
def test_pointwise_loss_matches_loops(scores, label):
  scores = np.array(scores, np.float32)
  labels = np.full(scores.shape, label, np.float32)
  expected = [
    float(p) * _softplus(-float(s)) + (1 - float(p)) * _softplus(float(s))
    for s, p in zip(scores, labels, strict=True)
  ]
  np.testing.assert_allclose(
    losses.pointwise_loss(scores, labels), expected, rtol=1e-5, atol=1e-7
  )


def test_pointwise_loss_is_a_likelihood():
  # The two labels' probabilities add up to 1, which the formula as the paper
  # prints it, with log σ(1 - s), does not give.
  scores = np.linspace(-5, 5, 11, dtype=np.float32)
  good = np.exp(-losses.pointwise_loss(scores, np.ones(11, np.float32)))
  bad = np.exp(-losses.pointwise_loss(scores, np.zeros(11, np.float32)))
  np.testing.assert_allclose(good + bad, np.ones(11), rtol=1e-6)


@hypothesis.given(st.floats(-100, 100, width=32))
def test_pairwise_loss_ignores_a_common_offset(offset):
  chosen = np.array([1.0, -2.0, 0.5], np.float32)
  rejected = np.array([0.0, 1.0, 0.5], np.float32)
  np.testing.assert_allclose(
    losses.pairwise_loss(chosen + offset, rejected + offset),
    losses.pairwise_loss(chosen, rejected),
    rtol=1e-4,
  )


def test_pairwise_loss_of_a_tie_is_log_2():
  tie = np.array([3.0], np.float32)
  assert losses.pairwise_loss(tie, tie)[0] == pytest.approx(math.log(2))


def test_margin_shifts_the_lead():
  chosen = np.array([2.0, 0.0], np.float32)
  rejected = np.array([0.5, 1.0], np.float32)
  margins = np.array([0.25, 1.0], np.float32)
  np.testing.assert_allclose(
    losses.pairwise_loss(chosen, rejected, margins),
    losses.pairwise_loss(chosen - margins, rejected),
    rtol=1e-6,
  )


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_losses_and_gradients_are_finite_at_extremes(size):
  scores = jnp.array([size], jnp.float32)
  for loss in (
    lambda s: losses.pairwise_loss(s, -s, centering=1e-3).sum(),
    lambda s: losses.pointwise_loss(s, jnp.ones(1)).sum(),
    lambda s: losses.pointwise_loss(s, jnp.zeros(1)).sum(),
  ):
    value, gradient = jax.value_and_grad(loss)(scores)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
  assert losses.pairwise_loss(-abs(scores), abs(scores))[0] == 2e4
