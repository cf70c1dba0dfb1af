"""Least memory that a model needs for a batch, from its configuration alone.

Lower bounds that take no time, for batches of which even compiling would run
out of memory. Of each moment they count the largest arrays once; a program
needs up to three times as much. Beside weights; of one device.
"""

import math

from perlhf_jax.models import t5_config

_FLOAT32 = 4
# Bytes of a position bias that NumPy holds while the program is traced, for
# each pair of a query and a key. Measured.
_TRACED = 28


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
  decoder = _bias(config, response_length, tensor) + _weights(
    config, batch, response_length, max(prompt_length, response_length), tensor
  )
  logits = batch * response_length * config.vocab_size // tensor * _FLOAT32
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


def tracing_bytes(*lengths: int) -> int:
  """Bounds what the host needs to trace attention of sequences to themselves.

  Args:
    *lengths: of the sequences that are read as a whole.

  Returns:
    Bytes.
  """
  return max(length**2 for length in lengths) * _TRACED


def _encoder(config, batch, length, tensor) -> int:
  return _bias(config, length, tensor) + _weights(
    config, batch, length, length, tensor
  )


def _bias(config, length, tensor) -> int:
  """Of the relative positions of a sequence's tokens."""
  return config.num_heads // tensor * length**2 * _FLOAT32


def _weights(config, batch, queries, keys, tensor) -> int:
  """Of attention, in float32; in blocks of queries if it is computed so."""
  if config.attention_block is not None:
    queries = math.ceil(queries / math.ceil(queries / config.attention_block))
  return batch * config.num_heads // tensor * queries * keys * _FLOAT32


def _itemsize(config) -> int:
  return config.compute_dtype.itemsize
