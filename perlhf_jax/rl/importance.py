"""Corrects for a sampler whose log-probabilities are not the trainer's.

Sampler and trainer run different programs, so that in bfloat16, or with a
sampler of another precision, they give the same token different probabilities.
The samples are then those of another policy than the one that is trained.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.rl import experience as experience_lib
from perlhf_jax.rl import shared_backbone


def correct(
  models: shared_backbone.Models,
  policy: shared_backbone.Variables,
  frozen: shared_backbone.Variables,
  experience: experience_lib.Experience,
  *,
  temperature: float,
  cap: float,
) -> tuple[experience_lib.Experience, dict[str, jax.Array]]:
  """Computes log-probabilities anew, and importance weights of the tokens.

  The weight of a token is its probability under the trainer divided by its
  probability under the sampler, or `cap` if that is smaller: truncated
  importance sampling, as in docs/algo/rollout_corr.md of verl.

  Args:
    models: the modules.
    policy: variables of the policy that sampled.
    frozen: `params`, the backbone.
    experience: samples.
    temperature: temperature of the distribution that `logprobs` refer to.
    cap: the largest weight.

  Returns:
    The samples with `logprobs` of the trainer, and `importance`; and the
    metrics `sampler_deviation`, the mean of |weight - 1| before the cap, and
    `importance_capped`, the share of tokens whose weight is cut.
  """
  mask = experience.response_mask
  source = shared_backbone.PromptSource(
    frozen, experience.prompts, experience.encoding
  )
  logprobs = policy_lib.response_logprobs(
    models.policy,
    shared_backbone.role_variables(frozen, policy),
    source.of(models.policy, policy),
    experience.response_tokens,
    temperature=temperature,
  )
  weights = kl_lib.probability_ratio(
    jnp.where(mask, logprobs, 0.0), jnp.where(mask, experience.logprobs, 0.0)
  )
  corrected = experience.replace(
    logprobs=logprobs, importance=jnp.minimum(weights, cap)
  )
  return corrected, {
    'sampler_deviation': masking.masked_mean(jnp.abs(weights - 1.0), mask),
    'importance_capped': masking.masked_mean(
      (weights > cap).astype(jnp.float32), mask
    ),
  }


def weigh_gradient(
  logprobs: Float[typing.Array, 'batch responses length'],
  importance: Float[typing.Array, 'batch responses length'] | None,
) -> Float[jax.Array, 'batch responses length']:
  """Returns the same log-probabilities, with gradients times `importance`.

  So every algorithm's loss is weighted token by token, and no algorithm needs
  to know of the weights. None changes nothing.
  """
  if importance is None:
    return logprobs
  held = jax.lax.stop_gradient(logprobs)
  return held + importance * (logprobs - held)
