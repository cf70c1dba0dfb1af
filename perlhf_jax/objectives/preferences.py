"""Losses of preference tuning without a reward model: DPO and IPO.

A policy and its reference imply a reward of a response y to a prompt x (DPO,
Rafailov et al., 2023, https://arxiv.org/abs/2305.18290):

  r(x, y) = β · (log π(y | x) - log reference(y | x))

The optimum of E[r] - β · KL(π ‖ reference) is the policy whose implied reward
is r. So pairs can train the policy itself, as they would train a reward model.
The losses are functions of the lead, r(chosen) - r(rejected) - margin. IPO
(Azar et al., 2023, https://arxiv.org/abs/2310.12036) calls β τ.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core.typing import Array


def dpo(
  lead: Float[Array, ' batch'], beta: float
) -> Float[jax.Array, ' batch']:
  """Computes -log σ(lead), the Bradley-Terry loss of the implied rewards.

  Args:
    lead: [batch] leads in the unit of rewards.
    beta: not used; the lead contains it.

  Returns:
    float32 [batch], in nats.
  """
  del beta
  return -jax.nn.log_sigmoid(jnp.asarray(lead, jnp.float32))


def ipo(
  lead: Float[Array, ' batch'], beta: float
) -> Float[jax.Array, ' batch']:
  """Computes ((lead - 1/2) / β)², which pulls the lead to one half.

  With h the lead of log-ratios, lead = β · h, this is IPO's (h - 1 / (2β))².

  Args:
    lead: [batch] leads in the unit of rewards.
    beta: β, above 0.

  Returns:
    float32 [batch], in nats².
  """
  return jnp.square((jnp.asarray(lead, jnp.float32) - 0.5) / beta)


LOSSES: Mapping[
  str, Callable[[Float[Array, ' batch'], float], Float[jax.Array, ' batch']]
] = {'dpo': dpo, 'ipo': ipo}


def preference_loss(
  name: str,
  chosen_rewards: Float[Array, ' batch'],
  rejected_rewards: Float[Array, ' batch'],
  margins: Float[Array, ' batch'] | None = None,
  *,
  beta: float,
  label_smoothing: float = 0.0,
) -> Float[jax.Array, ' batch']:
  """Computes the loss of preference pairs.

  With label smoothing ε the loss is (1 - ε) · loss(lead) + ε · loss(-lead): its
  mean if a share ε of the pairs is swapped. For DPO that is conservative DPO
  (Mitchell, 2023, https://ericmitchell.ai/cdpo.pdf).

  Args:
    name: a key of `LOSSES`.
    chosen_rewards: [batch] implied rewards of the preferred responses.
    rejected_rewards: [batch] implied rewards of the other responses.
    margins: [batch] by how much the chosen reward should lead; 0 by default.
    beta: β, above 0.
    label_smoothing: ε, in [0, 1/2).

  Returns:
    float32 [batch].
  """
  lead = jnp.asarray(chosen_rewards, jnp.float32) - rejected_rewards
  if margins is not None:
    lead = lead - margins
  loss = LOSSES[name](lead, beta)
  if label_smoothing:
    swapped = LOSSES[name](-lead, beta)
    loss = (1.0 - label_smoothing) * loss + label_smoothing * swapped
  return loss
