"""The inputs and outputs of an encoder."""

from collections.abc import Mapping

from flax import struct

from perlhf_jax.core import typing


@struct.dataclass
class Prompts:
  """Prompts of a batch: text, optionally with images before it.

  Attributes:
    tokens: int32 `[batch, prompt_length]`.
    mask: bool `[batch, prompt_length]`, True on real tokens.
    images: uint8 `[batch, images, height, width, 3]`, RGB; None for no images.
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
    mask: bool `[batch, memory_length]`, True on states of real tokens.
  """

  states: typing.PyTree
  mask: typing.PyTree

  def __len__(self) -> int:
    return self.states.shape[0]


# What every model accepts; encoded prompts skip the encoder.
MaybeEncoded = Prompts | Encoded


def of_tokens(tokens: typing.Array) -> Prompts:
  """Makes prompts from tokens `[batch, prompt_length]`, padded with 0."""
  return Prompts(tokens, tokens != 0)


def of_batch(batch: Mapping[str, typing.PyTree]) -> Prompts:
  """Makes prompts from the features of a batch.

  Args:
    batch: has `prompt_tokens` and `prompt_mask`, or `encoder_input_tokens` in
      supervised tuning; with images also `images` and `image_mask`.
  """
  images = batch.get('images'), batch.get('image_mask')
  if 'encoder_input_tokens' in batch:
    tokens = batch['encoder_input_tokens']
    return Prompts(tokens, tokens != 0, *images)
  return Prompts(batch['prompt_tokens'], batch['prompt_mask'], *images)
