"""Counts the tokens and the padding of batches."""

from collections.abc import Mapping

from perlhf_jax.core import typing

_TOKENS, _MASK = '_tokens', '_mask'


def count(batch: typing.Batch) -> tuple[int, int]:
  """Counts the tokens in a batch of a reward model or of prompts.

  Args:
    batch: arrays `*_tokens` and `*_mask` of prompts and responses.

  Returns:
    The number of tokens without padding, and with padding.
  """
  names = [
    name.removesuffix(_TOKENS) for name in batch if name.endswith(_TOKENS)
  ]
  tokens = sum(int(batch[name + _MASK].sum()) for name in names)
  return tokens, sum(batch[name + _TOKENS].size for name in names)


def rates(
  examples: int, tokens: int, places: int, seconds: float
) -> Mapping[str, float]:
  """Returns the rates of batches per second.

  Args:
    examples: examples in all batches.
    tokens: tokens in all batches, without padding.
    places: tokens in all batches, padding included.
    seconds: time of all batches.
  """
  return {
    'examples_per_second': examples / seconds,
    'tokens_per_second': tokens / seconds,
    'padding': 1 - tokens / places,
  }
