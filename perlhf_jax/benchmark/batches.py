"""What a benchmark computes on: prompts and responses of ragged lengths."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from perlhf_jax.core import typing
from perlhf_jax.data import feature_converters
from perlhf_jax.data import input_pipeline
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


def task_prompts(
  config: input_pipeline.DatasetConfig, vocabulary: Any
) -> list[np.ndarray]:
  """Reads prompts of a task, as many as a batch has."""
  examples = input_pipeline.load_examples(config, vocabulary).prompts()
  rows = examples.order.rows(0, config.batch_size)
  return [examples.example(int(row))['inputs'] for row in rows]


def prompt_batch(
  prompts: Sequence[np.ndarray], prompt_length: int
) -> typing.Batch:
  """Makes a batch of prompts, cut to a bucket of lengths as in training."""
  converter = feature_converters.PromptConverter(prompt_length)
  batch = converter([{'inputs': prompt} for prompt in prompts])
  return length_buckets.trim_prompts(batch, max(map(len, prompts)))


def with_images(
  rng: np.random.Generator,
  batch: typing.Batch,
  image_size: int | None,
  count: int,
) -> typing.Batch:
  """Adds images of noise to a batch, for models that read any.

  Args:
    rng: source of randomness.
    batch: of prompts.
    image_size: pixels of a side; None leaves the batch as it is.
    count: images of each prompt.
  """
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
  prompts: Sequence[np.ndarray],
  task_feature_lengths: Mapping[str, int],
  vocab_size: int,
) -> typing.Batch:
  """Makes a batch of pairs of random responses to prompts."""
  length = task_feature_lengths['targets']
  chosen, rejected = (
    random_tokens(rng, len(prompts), length, vocab_size) for _ in range(2)
  )
  converter = feature_converters.PairwiseConverter(
    task_feature_lengths['inputs'], length
  )
  return converter(
    [
      {'inputs': prompt, 'chosen': good, 'rejected': bad}
      for prompt, good, bad in zip(prompts, chosen, rejected, strict=True)
    ]
  )
