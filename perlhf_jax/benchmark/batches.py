"""What a benchmark computes on without a task: tokens of ragged lengths."""

from collections.abc import Mapping
import math

import numpy as np

from perlhf_jax.core import typing
from perlhf_jax.data import feature_converters
from perlhf_jax.data import length_buckets

# Random sequences have from this share of the limit to all of it.
SHORTEST = 0.25


def random_tokens(
  rng: np.random.Generator, count: int, length: int, vocab_size: int
) -> list[np.ndarray]:
  """Draws sequences with EOS at their end.

  Args:
    rng: source of randomness.
    count: how many.
    length: the limit; lengths are uniform from `SHORTEST` of it to all of it.
    vocab_size: ids below it occur; those of padding and EOS do not before the
      end.

  Returns:
    int32 `[its length]` each.
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
  """Makes a batch of prompts, cut to a bucket of lengths as in training.

  Args:
    rng: source of randomness.
    count: how many.
    task_feature_lengths: the limits.
    vocab_size: ids below it occur.
    image_size: pixels of a side, for models that read images; or None.
  """
  limit = task_feature_lengths['inputs']
  prompts = random_tokens(rng, count, limit, vocab_size)
  converter = feature_converters.PromptConverter(limit)
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
  """Adds `count` images of noise a prompt, for models that read any."""
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
    prompts: a batch of them, perhaps with images.
    task_feature_lengths: to which the pairs are padded.
    vocab_size: ids below it occur in responses.
  """
  length = task_feature_lengths['targets']
  texts = prompts_of(prompts)
  chosen, rejected = (
    random_tokens(rng, len(texts), length, vocab_size) for _ in range(2)
  )
  converter = feature_converters.PairwiseConverter(
    task_feature_lengths['inputs'], length
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
