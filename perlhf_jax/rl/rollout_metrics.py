"""Metrics of a rollout, other than the losses."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.rl import algorithm


def describe(
  episodes: algorithm.Episodes,
  scores: Float[typing.Array, 'batch responses'],
  has_eos: Bool[typing.Array, 'batch responses'],
  kl_estimator: str,
  kl_beta: Float[typing.Array, ''] | float,
) -> dict[str, jax.Array]:
  """Returns scalar metrics.

  `kl_k1` and `kl_k3` are there whatever the objective estimates the KL with,
  and so is the objective's own `kl_<estimator>`.

  Args:
    episodes: the rollout, with shaped scores.
    scores: the scores before shaping.
    has_eos: which responses end with EOS.
    kl_estimator: the KL estimator of the objective.
    kl_beta: β of the objective.
  """
  mask = episodes.mask
  nats = {
    name: kl_lib.sequence_sums(algorithm.token_kl(name, episodes), mask)
    for name in sorted({*kl_lib.REPORTED, kl_estimator})
  }
  kl_means, kl_errors = {}, {}
  for name, values in nats.items():
    kl_means[f'kl_{name}'], kl_errors[name] = kl_lib.mean_and_standard_error(
      values, algorithm.has_tokens(mask)
    )
  kl = nats[kl_estimator]
  return {
    'score': jnp.mean(scores),
    'score_std': jnp.std(scores),
    **kl_means,
    'kl_k1_standard_error': kl_errors['k1'],
    'objective': jnp.mean((1 - kl_beta) * episodes.scores - kl_beta * kl),
    'entropy': -masking.masked_mean(episodes.logprobs, mask),
    'response_length': jnp.mean(jnp.sum(mask, axis=-1, dtype=jnp.float32)),
    'truncated': 1 - jnp.mean(has_eos, dtype=jnp.float32),
  }


def of_values(
  episodes: algorithm.Episodes, targets: algorithm.Targets
) -> dict[str, jax.Array]:
  """Returns the share of the returns' variance that the values explain.

  The metric is named `explained_variance`; without a value model, the result is
  empty.
  """
  if targets.returns is None:
    return {}
  mask = episodes.mask
  error = targets.returns - episodes.values
  mean = masking.masked_mean(targets.returns, mask)
  residual = masking.masked_mean(
    jnp.square(error - masking.masked_mean(error, mask)), mask
  )
  total = masking.masked_mean(jnp.square(targets.returns - mean), mask)
  return {'explained_variance': 1 - residual / jnp.maximum(total, 1e-8)}
