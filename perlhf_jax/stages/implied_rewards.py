"""How much more likely a policy makes the responses of a pair.

The reference is the frozen backbone. With LoRA it is the policy without its
adapters, and no second backbone is in memory.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.rl import shared_backbone


def log_ratios(
  policy: t5.T5,
  trainable: Mapping[str, Any],
  frozen: Mapping[str, Any],
  batch: typing.Batch,
  length_limit: int,
) -> tuple[Float[jax.Array, ' batch'], Float[jax.Array, ' batch']]:
  """Returns log π - log reference of chosen and rejected responses.

  A response that fills the length limit may have been cut. Its last token, EOS,
  does not count: else the policy would learn to stop there.

  Args:
    policy: backbone with adapters; bare under full tuning.
    trainable: `{'policy': …}`, the policy's own variables.
    frozen: `{'params': …}`, the reference; adapters are applied to it.
    batch: pairs, see `kinds.PAIRWISE`.
    length_limit: tokens to which responses were cut.

  Returns:
    float32 [batch] each, in nats per response.
  """
  tokens, mask = (
    jnp.stack([batch[f'chosen_{x}'], batch[f'rejected_{x}']], axis=1)
    for x in ('tokens', 'mask')
  )
  if tokens.shape[-1] == length_limit:
    mask = mask.at[..., -1].set(False)
  prompts = shared_backbone.PromptSource(frozen, prompts_lib.of_batch(batch))

  def logprobs(model, role):
    return policy_lib.response_logprobs(
      model,
      shared_backbone.role_variables(frozen, role),
      prompts.of(model, role),
      tokens,
    )

  reference = encoder_decoder.make_model(policy.config)
  difference = logprobs(policy, trainable['policy']) - logprobs(reference, {})
  sums = masking.masked_sum(difference, mask, axis=-1)
  return sums[:, 0], sums[:, 1]
