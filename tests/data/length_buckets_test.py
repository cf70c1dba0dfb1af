import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.data import length_buckets
from perlhf_jax.models import prompts
from perlhf_jax.models import t5


@pytest.mark.parametrize(
  ('longest', 'limit', 'expected'),
  [
    (0, None, 16),
    (16, None, 16),
    (17, None, 32),
    (129, None, 256),
    (17, 20, 20),
    (500, 20, 20),
    (3, 8, 8),
    (17, 64, 32),
  ],
)
def test_padded_length(longest, limit, expected):
  assert length_buckets.padded_length(longest, limit) == expected


@pytest.mark.parametrize(
  ('longest', 'limit', 'expected'),
  [
    (0, 64, 16),
    (16, 64, 16),
    (17, 64, 32),
    (33, 64, 64),
    (64, 64, 64),
    (3, 17, 17),
    (3, 8, 8),
    (40, 99, 50),
  ],
)
def test_halved_length(longest, limit, expected):
  assert length_buckets.halved_length(longest, limit) == expected


def test_padded_length_from_another_shortest():
  assert length_buckets.padded_length(3, shortest=2) == 4


@hypothesis.given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 7))
def test_batches_by_length(lengths, batch_size):
  batches = list(length_buckets.batches_by_length(lengths, batch_size))
  indices = [i for batch in batches for i in batch]
  assert sorted(indices) == list(range(len(lengths)))
  assert [lengths[i] for i in indices] == sorted(lengths)
  assert all(len(batch) == batch_size for batch in batches[:-1])
  assert all(1 <= len(batch) <= batch_size for batch in batches)


def _batch(mask):
  mask = np.asarray(mask, bool)
  tokens = np.arange(mask.size, dtype=np.int32).reshape(mask.shape) + 2
  return {
    'prompt_tokens': np.where(mask, tokens, 0),
    'prompt_mask': mask,
    'example_mask': mask.any(axis=1),
  }


@hypothesis.given(
  st.lists(st.integers(1, 40), min_size=1, max_size=4),
  st.sampled_from([1, 4, 16]),
  st.integers(0, 9),
)
def test_trimmed_prompts_lose_no_token(lengths, shortest, room):
  limit = max(lengths) + room
  mask = np.arange(limit) < np.asarray(lengths)[:, None]
  batch = _batch(mask)
  trimmed = length_buckets.trim_prompts(batch, max(lengths), shortest)
  bucket = shortest
  while bucket < max(lengths):
    bucket *= 2
  bucket = min(bucket, limit)
  assert trimmed.keys() == batch.keys()
  for name in ('prompt_tokens', 'prompt_mask'):
    np.testing.assert_array_equal(trimmed[name], batch[name][:, :bucket])
  assert trimmed['prompt_mask'].sum() == sum(lengths)
  assert trimmed['example_mask'] is batch['example_mask']


def test_trimming_leaves_the_batch_as_it_was():
  batch = _batch(np.arange(64) < [[3], [20]])
  trimmed = length_buckets.trim_prompts(batch, 20)
  assert trimmed['prompt_tokens'].shape == (2, 32)
  assert batch['prompt_tokens'].shape == (2, 64)


def test_trimming_changes_no_logits():
  tokens, mask = tiny_models.ragged_tokens(0, 3, 11)
  batch = {
    'prompt_tokens': np.pad(tokens, ((0, 0), (0, 50))),
    'prompt_mask': np.pad(mask, ((0, 0), (0, 50))),
  }
  trimmed = length_buckets.trim_prompts(batch, 11)
  assert trimmed['prompt_tokens'].shape == (3, 16)
  model = t5.T5(tiny_models.CONFIG)
  variables = {'params': tiny_models.params()}
  responses, _ = tiny_models.ragged_tokens(1, 3, 5)
  whole, short = (
    model.apply(variables, prompts.of_batch(b), jnp.asarray(responses))
    for b in (batch, trimmed)
  )
  np.testing.assert_allclose(short, whole, atol=1e-5, rtol=0)
