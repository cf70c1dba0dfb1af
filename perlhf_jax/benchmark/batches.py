"""Batches of a benchmark without a task: random tokens of ragged lengths."""

from collections.abc import Mapping
import math

import numpy as np

from perlhf_jax.core import typing
from perlhf_jax.data import feature_converters
from perlhf_jax.data import kinds
from perlhf_jax.data import length_buckets

# The shortest random sequence, as a share of the length limit.
SHORTEST = 0.25


def random_tokens(
  rng: np.random.Generator, count: int, length: int, vocab_size: int
) -> list[np.ndarray]:
  """Draws sequences that end with EOS.

  Args:
    rng: source of randomness.
    count: number of sequences.
    length: the length limit; lengths are uniform from `SHORTEST` of it to all
      of it.
    vocab_size: ids are below it; padding and EOS do not occur before the end.

  Returns:
    The sequences, each int32 `[its length]`.
  """
  sequences = []
  for size in rng.integers(math.ceil(SHORTEST * length), length + 1, count):
    tokens = rng.integers(feature_converters.EOS_ID + 1, vocab_size, size)
    tokens[-1] = feature_converters.EOS_ID
    sequences.append(tokens.astype(np.int32))
  return sequences


def random_prompts(
  rng: np.random.Generator,
  count: int,
  task_feature_lengths: Mapping[str, int],
  vocab_size: int,
  image_size: int | None,
) -> typing.Batch:
  """Makes a batch of prompts, cut to a length bucket as in training.

  Args:
    rng: source of randomness.
    count: number of prompts.
    task_feature_lengths: the length limits.
    vocab_size: ids are below it.
    image_size: image height and width in pixels; None for models without
      images.
  """
  limit = task_feature_lengths['inputs']
  prompts = random_tokens(rng, count, limit, vocab_size)
  converter = feature_converters.Converter(kinds.PROMPTS, limit)
  batch = converter([{'inputs': prompt} for prompt in prompts])
  batch = length_buckets.trim_prompts(batch, max(map(len, prompts)))
  num_images = task_feature_lengths.get('images', 1)
  return _with_noise(rng, batch, image_size, num_images)


def _with_noise(
  rng: np.random.Generator,
  batch: typing.Batch,
  image_size: int | None,
  count: int,
) -> typing.Batch:
  """Adds `count` noise images per prompt, for models that read images."""
  if image_size is None:
    return batch
  rows = len(batch['prompt_tokens'])
  shape = (rows, count, image_size, image_size, 3)
  return {
    **batch,
    'images': rng.integers(0, 256, shape, np.uint8),
    'image_mask': np.ones((rows, count), bool),
  }


def pair_batch(
  rng: np.random.Generator,
  prompts: typing.Batch,
  task_feature_lengths: Mapping[str, int],
  vocab_size: int,
) -> typing.Batch:
  """Makes a batch of pairs of random responses to prompts.

  Args:
    rng: source of randomness.
    prompts: a batch of prompts, perhaps with images.
    task_feature_lengths: the lengths to which the pairs are padded.
    vocab_size: ids of responses are below it.
  """
  length = task_feature_lengths['targets']
  texts = prompts_of(prompts)
  chosen, rejected = (
    random_tokens(rng, len(texts), length, vocab_size) for _ in range(2)
  )
  converter = feature_converters.Converter(
    kinds.PAIRWISE, task_feature_lengths['inputs'], length
  )
  pairs = converter(
    [
      {'inputs': prompt, 'chosen': good, 'rejected': bad}
      for prompt, good, bad in zip(texts, chosen, rejected, strict=True)
    ]
  )
  images = ('images', 'image_mask')
  return {**pairs, **{n: prompts[n] for n in images if n in prompts}}


def prompts_of(batch: typing.Batch) -> list[np.ndarray]:
  """Returns the prompts of a batch without padding, int32 `[length]` each."""
  return [
    tokens[mask]
    for tokens, mask in zip(
      batch['prompt_tokens'], batch['prompt_mask'], strict=True
    )
  ]
