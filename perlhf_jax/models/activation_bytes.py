"""Lower bounds of a model's activation memory, from its configuration alone.

They cost no time and catch batches so large that even compiling would run out
of memory. They count only the largest arrays that are live at the same time; a
program needs up to three times as much. Bounds are per device, without weights.
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
  """Bounds the forward pass over prompts and responses.

  Args:
    config: the model's configuration.
    batch: rows per device.
    prompt_length: tokens that the encoder reads, image tokens included.
    response_length: tokens that the decoder reads.
    with_logits: whether the model computes logits.
    tensor: number of shards of the heads and of the vocabulary.

  Returns:
    Bytes per device.
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
  """Bounds sampling or beam search.

  Args:
    config: the model's configuration.
    batch: prompts per device.
    prompt_length: tokens that the encoder reads, image tokens included.
    max_length: maximum number of tokens in a response.
    responses: samples or beams per prompt.
    tensor: number of shards of the heads and of the vocabulary.

  Returns:
    Bytes per device.
  """
  rows, heads = batch * responses, config.num_heads // tensor
  keys_and_values = 2 * config.num_decoder_layers * heads * config.head_dim
  positions = rows * max_length + batch * prompt_length
  cache = keys_and_values * positions * _itemsize(config)
  # Per position: attention weights, a token and its log-probability.
  step = rows * max_length * (heads + 2) * _FLOAT32
  logits = rows * config.vocab_size // tensor * _FLOAT32
  return max(
    _encoder(config, batch, prompt_length, tensor), cache + step + logits
  )


def _encoder(config, batch, length, tensor) -> int:
  return _weights(config, batch, length, length, tensor)


def _weights(config, batch, queries, keys, tensor) -> int:
  """Bytes of attention weights and position bias for one block of queries."""
  heads = config.num_heads // tensor
  block = config.attention_block
  if block is None:
    block = attend.choose_block(batch, heads, queries, keys)
  queries = math.ceil(queries / math.ceil(queries / block))
  return (batch + 1) * heads * queries * keys * _FLOAT32


def _itemsize(config) -> int:
  return config.compute_dtype.itemsize
