"""Pads arrays to few lengths, so that few programs are compiled.

The lengths (buckets) are powers of two from `shortest` up to a limit, or
halvings of the limit.
"""

from collections.abc import Iterator, Mapping, Sequence

from perlhf_jax.core import typing

SHORTEST = 16


def padded_length(
  longest: int, limit: int | None = None, shortest: int = SHORTEST
) -> int:
  """Returns the smallest bucket that holds `longest` tokens.

  Args:
    longest: tokens of the longest sequence of a batch.
    limit: length at which sequences are cut; None for no limit.
    shortest: smallest bucket.
  """
  length = shortest
  while length < longest:
    length *= 2
  return length if limit is None else min(length, limit)


def halved_length(longest: int, limit: int, shortest: int = SHORTEST) -> int:
  """Returns `limit`, halved as often as `longest` tokens still fit.

  For sequences that usually have the full length: a limit of 17 tokens does not
  lead to a bucket of 16.

  Args:
    longest: tokens of the longest sequence of a batch.
    limit: maximum length of sequences.
    shortest: smallest bucket worth a program.
  """
  length = limit
  while (length + 1) // 2 >= max(longest, shortest):
    length = (length + 1) // 2
  return length


def batches_by_length(
  lengths: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
  """Yields the indices of each batch, grouping sequences of similar lengths.

  Args:
    lengths: tokens of each sequence.
    batch_size: indices per batch; the last batch may have fewer.
  """
  order = sorted(range(len(lengths)), key=lambda i: lengths[i])
  for start in range(0, len(order), batch_size):
    yield order[start : start + batch_size]


def trim_prompts(
  batch: Mapping[str, typing.Array], longest: int, shortest: int = SHORTEST
) -> dict[str, typing.Array]:
  """Cuts padding off the prompts of a batch, down to the smallest bucket.

  Shorter prompts make the encoder cheaper; results do not change.

  Args:
    batch: `prompt_tokens` and `prompt_mask` `[batch, prompt_length]`, and
      others, which stay as they are.
    longest: tokens of the longest prompt, over all hosts that feed the program.
    shortest: smallest bucket.

  Returns:
    The batch, with prompts `[batch, bucket]`.
  """
  limit = batch['prompt_tokens'].shape[1]
  length = padded_length(longest, limit, shortest)
  return {
    **batch,
    'prompt_tokens': batch['prompt_tokens'][:, :length],
    'prompt_mask': batch['prompt_mask'][:, :length],
  }
