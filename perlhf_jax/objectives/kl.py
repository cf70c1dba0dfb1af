"""Estimates KL(π‖reference) from tokens that π sampled.

With x = log reference(a) - log π(a) for a sampled token a (Schulman, 2020,
http://joschu.net/blog/kl-approx.html):

  k1 = -x             unbiased, may be negative
  k2 = x² / 2         biased, never negative
  k3 = eˣ - 1 - x     unbiased, never negative

The sum of k1 over the tokens of a response is an unbiased estimate of the KL
between the distributions over whole responses; so is the sum of k3. Metrics and
settings name the estimator, because estimators differ on the same samples.
"""

from collections.abc import Callable, Mapping
import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from perlhf_jax.core import masking
from perlhf_jax.core.typing import Array

# exp(20) is 5e8, far above the ratios of a working policy. float32 overflows at
# exp(88), which would make gradients NaN.
_MAX_LOG_RATIO = 20.0


def probability_ratio(
  logprobs: Float[Array, '*shape'], old_logprobs: Float[Array, '*shape']
) -> Float[jax.Array, '*shape']:
  """Computes exp(logprobs - old_logprobs), exactly 1 where both are equal.

  Beyond e²⁰ the exponential continues as its tangent: value and gradient stay
  finite, and the gradient keeps its direction.

  Args:
    logprobs: [...] log-probabilities of the numerator, in nats.
    old_logprobs: [...] log-probabilities of the denominator, in nats.
  """
  log_ratio = logprobs - old_logprobs
  beyond = jnp.maximum(log_ratio - _MAX_LOG_RATIO, 0.0)
  return jnp.exp(jnp.minimum(log_ratio, _MAX_LOG_RATIO)) * (1.0 + beyond)


def k1(
  logprobs: Float[Array, '*shape'], ref_logprobs: Float[Array, '*shape']
) -> Float[jax.Array, '*shape']:
  """Computes log π - log reference of each token.

  Its gradient is zero in expectation: use it as a reward, not as a loss.
  """
  return jnp.asarray(logprobs) - ref_logprobs


def k2(
  logprobs: Float[Array, '*shape'], ref_logprobs: Float[Array, '*shape']
) -> Float[jax.Array, '*shape']:
  """Computes (log π - log reference)² / 2 of each token.

  On π's own samples its gradient is the gradient of KL(π‖reference).
  """
  return 0.5 * jnp.square(k1(logprobs, ref_logprobs))


def k3(
  logprobs: Float[Array, '*shape'], ref_logprobs: Float[Array, '*shape']
) -> Float[jax.Array, '*shape']:
  """Computes eˣ - 1 - x of each token, x = log reference - log π.

  On π's own samples its gradient is the gradient of the reverse KL,
  KL(reference‖π). Beyond x = 20 the exponential continues as its tangent.
  """
  log_ratio = jnp.asarray(ref_logprobs) - logprobs
  beyond = jnp.maximum(log_ratio - _MAX_LOG_RATIO, 0.0)
  # Near x = 0, exp(x) - 1 would lose digits.
  growth = jnp.expm1(jnp.minimum(log_ratio, _MAX_LOG_RATIO))
  return growth + math.exp(_MAX_LOG_RATIO) * beyond - log_ratio


ESTIMATORS: Mapping[
  str,
  Callable[
    [Float[Array, '*shape'], Float[Array, '*shape']],
    Float[jax.Array, '*shape'],
  ],
] = {'k1': k1, 'k2': k2, 'k3': k3}

# The estimators that every log and evaluation has, as `kl_k1` and `kl_k3`: k1
# shows mistakes by falling below 0, and k3 varies less.
REPORTED = ('k1', 'k3')


def token_kl(
  estimator: str,
  logprobs: Float[Array, 'batch responses length'],
  ref_logprobs: Float[Array, 'batch responses length'],
  mask: Bool[Array, 'batch responses length'],
) -> Float[jax.Array, 'batch responses length']:
  """Estimates the KL of every response token, 0 elsewhere.

  Masked positions are ignored, and get gradient 0, even if they hold NaN or
  infinity.

  Args:
    estimator: 'k1', 'k2' or 'k3'.
    logprobs: [batch, responses, length] log-probabilities of the policy that
      sampled the tokens.
    ref_logprobs: [batch, responses, length] the reference's log-probabilities.
    mask: true on the response, EOS included.
  """
  # Mask before the estimator: NaN times a gradient of 0 would be NaN.
  return ESTIMATORS[estimator](
    jnp.where(mask, logprobs, 0.0), jnp.where(mask, ref_logprobs, 0.0)
  )


def sequence_sums(
  kl: Float[Array, 'batch responses length'],
  mask: Bool[Array, 'batch responses length'],
) -> Float[jax.Array, 'batch responses']:
  """Sums the KL of tokens over each response, in nats per response."""
  return masking.masked_sum(kl, mask, axis=-1)


def mean_and_standard_error(
  kl: Float[Array, 'batch responses'], valid: Bool[Array, 'batch responses']
) -> tuple[Float[jax.Array, ''], Float[jax.Array, '']]:
  """Averages the KL of responses and estimates the error of the average.

  Args:
    kl: [batch, responses] nats per response.
    valid: false for responses that only fill up the batch.

  Returns:
    The mean, and its standard error from the spread over all responses; the
    error is infinite for fewer than two responses. It tends to be too large if
    a prompt has several responses.
  """
  count = jnp.sum(valid)
  mean = masking.masked_mean(kl, valid)
  squares = masking.masked_sum(jnp.square(kl - mean), valid)
  variance = squares / jnp.maximum(count - 1, 1)
  error = jnp.sqrt(variance / jnp.maximum(count, 1))
  return mean, jnp.where(count > 1, error, jnp.inf)
