"""How the losses of tokens add up to the loss of a minibatch."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from perlhf_jax.core import checks
from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.rl import algorithm

Name = Annotated[str, checks.OneOf('sum', 'token', 'sequence', 'constant')]


@dataclasses.dataclass(frozen=True)
class Aggregation:
  """Adds up the tokens of a minibatch; divide the sums by `weight_sum`.

    sum       the sum over the tokens of a response, the mean over responses:
              the objective of the paper and of RLOO
    token     the mean over all tokens of the minibatch, so that every token
              weighs the same (PPO, DAPO)
    sequence  the mean over the tokens of a response, then over responses, so
              that a token weighs less in a long response (GRPO)
    constant  as `sum`, divided by the length limit (Dr. GRPO)

  The mean over responses counts only responses that the mask leaves tokens.

  Attributes:
    name: one of the four.
    mask: bool `[batch, responses, length]`, true where a token counts.
    max_length: the length limit of responses. It is not the length of `mask`,
      which changes from rollout to rollout.
  """

  name: str
  mask: Bool[typing.Array, 'batch responses length']
  max_length: Int[typing.Array, ''] | int

  @property
  def weight_sum(self) -> Float[jax.Array, '']:
    """The divisor of all sums: the number of tokens or of responses."""
    if self.name == 'token':
      return jnp.sum(self.mask, dtype=jnp.float32)
    return jnp.sum(algorithm.has_tokens(self.mask), dtype=jnp.float32)

  def loss(
    self, x: Float[typing.Array, 'batch responses length']
  ) -> Float[jax.Array, '']:
    """Adds up a loss per token."""
    if self.name == 'sequence':
      return self.metric(x)
    total = masking.masked_sum(x, self.mask)
    return total / self.max_length if self.name == 'constant' else total

  def metric(
    self, x: Float[typing.Array, 'batch responses length']
  ) -> Float[jax.Array, '']:
    """Adds up a metric per token, so that its mean is of the same size."""
    if self.name == 'token':
      return masking.masked_sum(x, self.mask)
    return jnp.sum(masking.masked_mean(x, self.mask, axis=-1))


def of_episodes(
  episodes: algorithm.Episodes, name: str, mask_truncated: bool
) -> Aggregation:
  """Returns the aggregation of a minibatch.

  Args:
    episodes: the minibatch.
    name: see `Aggregation`.
    mask_truncated: whether to leave out responses that were cut off at the
      length limit.
  """
  mask = jnp.asarray(episodes.mask)
  if mask_truncated:
    mask = mask & jnp.asarray(episodes.ended)[..., None]
  return Aggregation(name, mask, episodes.max_length)
