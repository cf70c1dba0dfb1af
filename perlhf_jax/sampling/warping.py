"""The sampling distribution: temperature, top-k and nucleus (top-p)."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import typing


def warp_logits(
  logits: Float[typing.Array, '*shape vocab'],
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float = 1.0,
) -> Float[jax.Array, '*shape vocab']:
  """Returns log-probabilities of the sampling distribution.

  Logits are divided by the temperature. The `top_k` highest are kept, then the
  nucleus of these, and the rest is renormalized. The nucleus is the smallest
  set of most probable tokens whose probability reaches `top_p` (Holtzman et
  al. 2019, arXiv:1904.09751, section 3.1); it is never empty. Tokens that tie
  with the last kept token are kept too.

  Args:
    logits: `[..., vocab]`.
    temperature: temperature of the softmax. For 0 (greedy decoding) the result
      is the model's full distribution at temperature 1.
    top_k: at least 1; None keeps the whole vocabulary.
    top_p: in (0, 1].

  Returns:
    float32 `[..., vocab]`; -inf for tokens that are never drawn.
  """
  logits = jnp.asarray(logits, jnp.float32)
  if temperature == 0:
    return jax.nn.log_softmax(logits)
  logits = logits / temperature
  if top_k is not None and top_k < logits.shape[-1]:
    highest, _ = jax.lax.top_k(logits, top_k)
    logits = jnp.where(logits >= highest[..., -1:], logits, -jnp.inf)
  if top_p < 1:
    logits = jnp.where(_nucleus(logits, top_p), logits, -jnp.inf)
  return jax.nn.log_softmax(logits)


def _nucleus(logits, top_p):
  """Returns the mask of the nucleus: tokens above the highest valid threshold.

  Bisection finds the threshold in 31 sums; sorting a vocabulary takes about 30
  times as long. Nonnegative floats have the same order as their bits read as
  integers, so bisecting the bits gives the exact threshold.
  """
  probabilities = jax.nn.softmax(logits)
  bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

  def halve(_, bounds):
    low, high = bounds
    middle = high - (high - low) // 2
    kept = jnp.where(bits >= middle, probabilities, 0.0)
    reaches = jnp.sum(kept, axis=-1, keepdims=True) >= top_p
    return jnp.where(reaches, middle, low), jnp.where(reaches, high, middle - 1)

  high = jnp.max(bits, axis=-1, keepdims=True)
  low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
  return bits >= low
