import math

import jax
import numpy as np
import pytest

from perlhf_jax.objectives import preferences

BETA = 0.3
# Log-ratios of chosen and rejected responses in nats, and margins.
CHOSEN = np.array([0.0, 2.5, -4.0, 1.0], np.float32)
REJECTED = np.array([0.0, -1.5, 3.0, 0.25], np.float32)
MARGINS = np.array([0.0, 0.5, 1.0, 0.0], np.float32)


def _sigmoid(x):
  return 1 / (1 + math.exp(-x))


def _published(name, h, margin, smoothing):
  """The loss of a pair as its paper writes it; h is the lead of log-ratios."""
  if name == 'dpo':  # Equation 3 of conservative DPO; with ε = 0, DPO's 7.
    p = _sigmoid(BETA * h - margin)
    return -(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p)
  # Equation 17 of IPO; a margin asks for a lead that is larger by it.
  h = h - margin / BETA
  return (1 - smoothing) * (h - 1 / (2 * BETA)) ** 2 + smoothing * (
    -h - 1 / (2 * BETA)
  ) ** 2


def _loss(name, chosen, rejected, margins=None, smoothing=0.0):
  return preferences.preference_loss(
    name,
    BETA * chosen,
    BETA * rejected,
    margins,
    beta=BETA,
    label_smoothing=smoothing,
  )


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('margins', [None, MARGINS])
@pytest.mark.parametrize('name', preferences.LOSSES)
def test_losses_are_the_published_ones(name, margins, smoothing):
  loss = _loss(name, CHOSEN, REJECTED, margins, smoothing)
  expected = [
    _published(name, float(c) - float(r), float(m), smoothing)
    for c, r, m in zip(
      CHOSEN,
      REJECTED,
      np.zeros(4) if margins is None else margins,
      strict=True,
    )
  ]
  assert loss.dtype == np.float32
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_gradient_of_dpo_is_the_published_one():
  """Equation 8 of DPO: -β σ(r(rejected) - r(chosen)) per log-ratio."""

  def total(chosen, rejected):
    return _loss('dpo', chosen, rejected).sum()

  found = jax.grad(total, argnums=(0, 1))(CHOSEN, REJECTED)
  weights = [
    BETA * _sigmoid(BETA * (float(r) - float(c)))
    for c, r in zip(CHOSEN, REJECTED, strict=True)
  ]
  np.testing.assert_allclose(found[0], [-w for w in weights], rtol=1e-5)
  np.testing.assert_allclose(found[1], weights, rtol=1e-5)


def test_ipo_is_least_where_the_lead_is_what_it_asks_for():
  leads = np.linspace(-5, 5, 2001).astype(np.float32)
  losses = _loss('ipo', leads, np.zeros_like(leads))
  assert leads[np.argmin(losses)] == pytest.approx(1 / (2 * BETA), abs=0.005)
  # A share of swapped pairs asks for less.
  losses = _loss('ipo', leads, np.zeros_like(leads), smoothing=0.2)
  wanted = (1 - 2 * 0.2) / (2 * BETA)
  assert leads[np.argmin(losses)] == pytest.approx(wanted, abs=0.005)


@pytest.mark.parametrize('name', preferences.LOSSES)
def test_a_pair_that_is_far_off_has_a_finite_loss_and_gradient(name):
  far = np.array([1e4, -1e4], np.float32)
  value, gradient = jax.value_and_grad(
    lambda chosen: _loss(name, chosen, np.zeros_like(far), None, 0.1).sum()
  )(far)
  assert np.isfinite(value) and np.all(np.isfinite(gradient))
