"""What a step of reinforcement learning sees: prompts, responses, opinions."""

from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from perlhf_jax.core import typing
from perlhf_jax.rl import algorithm
from perlhf_jax.sampling import decoding


@struct.dataclass
class Experience:
  """A batch of a step; its fields are filled in this order.

  What is None is not known yet, or nobody of this run says it.

  Attributes:
    prompts: `Prompts` of the batch.
    example_mask: bool `[batch]`, False where a row only fills up the batch.
    response_tokens: int32 `[batch, responses, length]`.
    response_mask: bool, of that shape, true up to and including EOS.
    logprobs: float32, of that shape, of the policy that sampled, in nats.
    encoding: `Encoded` prompts, of the bare backbone, if the policy shares it.
    ref_logprobs: the same of the reference.
    values: float32, of that shape, before each token is chosen.
    model_scores: float32 `[batch, responses, models]`, of each reward model.
    scores: float32 `[batch, responses]`, of all that rewards.
    targets: `algorithm.Targets`, what the updates aim at.
  """

  prompts: typing.PyTree
  example_mask: typing.PyTree
  response_tokens: typing.PyTree
  response_mask: typing.PyTree
  logprobs: typing.PyTree
  encoding: typing.PyTree = None
  ref_logprobs: typing.PyTree = None
  values: typing.PyTree = None
  model_scores: typing.PyTree = None
  scores: typing.PyTree = None
  targets: typing.PyTree = None

  def trimmed(self, length: int) -> 'Experience':
    """Cuts responses to `length`, which must hold every token of them."""
    names = 'response_tokens', 'response_mask', 'logprobs'
    return self.replace(**{n: getattr(self, n)[..., :length] for n in names})

  def episodes(self) -> algorithm.Episodes:
    """Returns what an algorithm is given of it."""
    return algorithm.Episodes(
      mask=self.response_mask,
      logprobs=self.logprobs,
      ref_logprobs=self.ref_logprobs,
      values=self.values,
      scores=self.scores,
    )


class Assessment(NamedTuple):
  """What the roles beside the policy add to an `Experience`."""

  ref_logprobs: typing.PyTree
  values: typing.PyTree
  model_scores: typing.PyTree


def has_eos(
  tokens: Int[typing.Array, 'batch responses length'],
  mask: Bool[typing.Array, 'batch responses length'],
) -> Bool[jax.Array, 'batch responses']:
  """Tells which responses ended by themselves: `[batch, responses]`."""
  return jnp.any((tokens == decoding.EOS_ID) & mask, axis=-1)


def end_with_eos(
  tokens: Int[typing.Array, 'batch responses length'],
  mask: Bool[typing.Array, 'batch responses length'],
) -> tuple[
  Int[jax.Array, 'batch responses longer'],
  Bool[jax.Array, 'batch responses longer'],
]:
  """Gives every response the EOS at which reward models read their score.

  They were trained on responses that end with it, cut ones included, so one
  that ran out of room gets it in an additional place.

  Returns:
    Tokens and mask, `[batch, responses, length + 1]`.
  """
  pad = ((0, 0), (0, 0), (0, 1))
  tokens, mask = jnp.pad(tokens, pad), jnp.pad(mask, pad)
  lacks = ~has_eos(tokens, mask)
  tokens = tokens.at[..., -1].set(jnp.where(lacks, decoding.EOS_ID, 0))
  return tokens, mask.at[..., -1].set(lacks)
