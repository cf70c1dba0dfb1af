"""What goes into an encoder and what comes out of it."""

from collections.abc import Mapping

from flax import struct

from perlhf_jax.core import typing


@struct.dataclass
class Prompts:
  """Prompts of a batch: text, and perhaps images before it.

  Attributes:
    tokens: int32 `[batch, prompt_length]`.
    mask: bool `[batch, prompt_length]`, True on real tokens.
    images: uint8 `[batch, images, height, width, 3]`, RGB; None without.
    image_mask: bool `[batch, images]`, False where there is no image.
  """

  tokens: typing.PyTree
  mask: typing.PyTree
  images: typing.PyTree = None
  image_mask: typing.PyTree = None

  def __len__(self) -> int:
    return self.tokens.shape[0]


@struct.dataclass
class Encoded:
  """Encoded prompts.

  Attributes:
    states: `[batch, memory_length, embed]`; image tokens come first.
    mask: bool `[batch, memory_length]`; what is masked means nothing.
  """

  states: typing.PyTree
  mask: typing.PyTree

  def __len__(self) -> int:
    return self.states.shape[0]


# What every model reads: an encoder leaves alone what is encoded already.
MaybeEncoded = Prompts | Encoded


def of_tokens(tokens: typing.Array) -> Prompts:
  """Makes prompts of text alone, `[batch, prompt_length]`, padded with 0."""
  return Prompts(tokens, tokens != 0)


def of_batch(batch: Mapping[str, typing.PyTree]) -> Prompts:
  """Makes prompts of the features of a batch.

  Args:
    batch: `prompt_tokens` and `prompt_mask`, or, of supervised tuning,
      `encoder_input_tokens`; with images, `images` and `image_mask`.
  """
  images = batch.get('images'), batch.get('image_mask')
  if 'encoder_input_tokens' in batch:
    tokens = batch['encoder_input_tokens']
    return Prompts(tokens, tokens != 0, *images)
  return Prompts(batch['prompt_tokens'], batch['prompt_mask'], *images)
