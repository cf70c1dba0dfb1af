"""How much of a batch is text, and how much is padding."""

from collections.abc import Mapping

from perlhf_jax.core import typing

_TOKENS, _MASK = '_tokens', '_mask'


def count(batch: typing.Batch) -> tuple[int, int]:
  """Counts a batch of a reward model or of prompts.

  Args:
    batch: arrays `*_tokens` and `*_mask`, of prompts and responses.

  Returns:
    The tokens that are there, and the places that there are for them.
  """
  names = [
    name.removesuffix(_TOKENS) for name in batch if name.endswith(_TOKENS)
  ]
  tokens = sum(int(batch[name + _MASK].sum()) for name in names)
  return tokens, sum(batch[name + _TOKENS].size for name in names)


def rates(
  examples: int, tokens: int, places: int, seconds: float
) -> Mapping[str, float]:
  """Returns what batches come to a second.

  Args:
    examples: of all batches.
    tokens: of them, without padding.
    places: of them, padding included.
    seconds: that they took.
  """
  return {
    'examples_per_second': examples / seconds,
    'tokens_per_second': tokens / seconds,
    'padding': 1 - tokens / places,
  }
