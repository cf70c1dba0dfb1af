"""The data of an RL step: prompts, responses and model outputs for them."""

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
  """The batch of a step; its fields are filled in this order.

  A field is None if it is not computed yet, or not used in this run.

  Attributes:
    prompts: `Prompts` of the batch.
    example_mask: bool `[batch]`, False where a row is padding of the batch.
    response_tokens: int32 `[batch, responses, length]`.
    response_mask: bool, same shape, true up to and including EOS.
    logprobs: float32, same shape, from the policy that sampled, in nats.
    encoding: prompts `Encoded` by the bare backbone, if the policy shares it.
    ref_logprobs: float32, same shape, from the reference, in nats.
    values: float32, same shape, the value before each token is chosen.
    model_scores: float32 `[batch, responses, models]`, from each reward model.
    scores: float32 `[batch, responses]`, combined from all reward sources.
    targets: `algorithm.Targets` of the updates.
    importance: float32 `[batch, responses, length]`, a weight of each token's
      gradient; `logprobs` are then the trainer's (`rl/importance.py`).
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
  importance: typing.PyTree = None

  def trimmed(self, length: int) -> 'Experience':
    """Cuts responses to `length`; no response may have more tokens."""
    names = 'response_tokens', 'response_mask', 'logprobs'
    return self.replace(**{n: getattr(self, n)[..., :length] for n in names})

  def episodes(self, max_length: int) -> algorithm.Episodes:
    """Returns what an algorithm gets.

    Args:
      max_length: the length limit with which the responses were sampled.
    """
    return algorithm.Episodes(
      mask=self.response_mask,
      ended=has_eos(self.response_tokens, self.response_mask),
      logprobs=self.logprobs,
      ref_logprobs=self.ref_logprobs,
      values=self.values,
      scores=self.scores,
      max_length=max_length,
    )


class Assessment(NamedTuple):
  """The fields of an `Experience` that the roles other than the policy add."""

  ref_logprobs: typing.PyTree
  values: typing.PyTree
  model_scores: typing.PyTree


def has_eos(
  tokens: Int[typing.Array, 'batch responses length'],
  mask: Bool[typing.Array, 'batch responses length'],
) -> Bool[jax.Array, 'batch responses']:
  """Returns which responses end with EOS: bool `[batch, responses]`."""
  return jnp.any((tokens == decoding.EOS_ID) & mask, axis=-1)


def end_with_eos(
  tokens: Int[typing.Array, 'batch responses length'],
  mask: Bool[typing.Array, 'batch responses length'],
) -> tuple[
  Int[jax.Array, 'batch responses longer'],
  Bool[jax.Array, 'batch responses longer'],
]:
  """Adds EOS, where reward models read the score, to responses without it.

  Reward models are trained on responses that end with EOS, even if cut. So the
  responses get one more position, which holds EOS where it was missing.

  Returns:
    Tokens and mask, `[batch, responses, length + 1]`.
  """
  pad = ((0, 0), (0, 0), (0, 1))
  tokens, mask = jnp.pad(tokens, pad), jnp.pad(mask, pad)
  lacks = ~has_eos(tokens, mask)
  tokens = tokens.at[..., -1].set(jnp.where(lacks, decoding.EOS_ID, 0))
  return tokens, mask.at[..., -1].set(lacks)
