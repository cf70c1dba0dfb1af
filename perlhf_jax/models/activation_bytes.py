"""Least memory that a model needs for a batch, from its configuration alone.

Lower bounds that take no time, for batches of which even compiling would run
out of memory. Of each moment they count the largest arrays once; a program
needs up to three times as much. Beside weights; of one device.
"""

import math

from perlhf_jax.models import attend
from perlhf_jax.models import output_layer
from perlhf_jax.models import t5_config

_FLOAT32 = 4


def scoring_bytes(
  config: t5_config.T5Config,
  *,
  batch: int,
  prompt_length: int,
  response_length: int,
  with_logits: bool,
  tensor: int = 1,
) -> int:
  """Bounds the forward pass of prompts and responses.

  Args:
    config: the model.
    batch: rows on a device.
    prompt_length: what the encoder reads, tokens of images included.
    response_length: what the decoder reads.
    with_logits: whether there are logits, as of a language model.
    tensor: parts in which heads and vocabulary are split.

  Returns:
    Bytes.
  """
  states = batch * prompt_length * config.emb_dim * _itemsize(config)
  decoder = _weights(
    config, batch, response_length, max(prompt_length, response_length), tensor
  )
  position = batch * config.vocab_size // tensor * _FLOAT32
  logits = position * output_layer.chunk_length(response_length, position)
  return max(
    _encoder(config, batch, prompt_length, tensor),
    states + decoder,
    states + logits * with_logits,
  )


def decoding_bytes(
  config: t5_config.T5Config,
  *,
  batch: int,
  prompt_length: int,
  max_length: int,
  responses: int = 1,
  tensor: int = 1,
) -> int:
  """Bounds sampling, or a beam search.

  Args:
    config: the model.
    batch: prompts on a device.
    prompt_length: what the encoder reads, tokens of images included.
    max_length: tokens of a response at most.
    responses: samples, or beams, of a prompt.
    tensor: parts in which heads and vocabulary are split.

  Returns:
    Bytes.
  """
  rows, heads = batch * responses, config.num_heads // tensor
  keys_and_values = 2 * config.num_decoder_layers * heads * config.head_dim
  positions = rows * max_length + batch * prompt_length
  cache = keys_and_values * positions * _itemsize(config)
  # Attention weights, a token and its log-probability at each position.
  step = rows * max_length * (heads + 2) * _FLOAT32
  logits = rows * config.vocab_size // tensor * _FLOAT32
  return max(
    _encoder(config, batch, prompt_length, tensor), cache + step + logits
  )


def _encoder(config, batch, length, tensor) -> int:
  return _weights(config, batch, length, length, tensor)


def _weights(config, batch, queries, keys, tensor) -> int:
  """Of a block of queries, and of the bias by distance that all rows share."""
  heads = config.num_heads // tensor
  block = config.attention_block
  if block is None:
    block = attend.choose_block(batch, heads, queries, keys)
  queries = math.ceil(queries / math.ceil(queries / block))
  return (batch + 1) * heads * queries * keys * _FLOAT32


def _itemsize(config) -> int:
  return config.compute_dtype.itemsize
