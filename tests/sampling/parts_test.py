"""A batch that is sampled in parts gives the samples of the whole."""

import dataclasses
import functools

import jax
import numpy as np
import program_results
import pytest
import sampling_reference
import tiny_models

from perlhf_jax.models import t5
from perlhf_jax.sampling import sampler

CONFIG = sampling_reference.CONFIG
MODEL = t5.T5(CONFIG)
BATCH = 8
WHOLE = sampler.SamplingConfig(12, temperature=0.9, num_samples=2)


@functools.partial(jax.jit, static_argnums=2, static_argnames='early_stop')
def _sample(prompts, keys, config, early_stop=True):
  variables = {'params': tiny_models.params(CONFIG)}
  return sampler.sample(
    MODEL, variables, prompts, keys, config, early_stop=early_stop
  )


@pytest.fixture(scope='module')
def inputs():
  prompts = tiny_models.prompts(0, BATCH, 9, CONFIG.vocab_size)
  return prompts, jax.random.split(jax.random.key(3), BATCH)


@pytest.fixture(scope='module')
def whole(inputs):
  samples = _sample(*inputs, WHOLE)
  ended = (samples.tokens == 1).any(axis=-1)
  assert 0 < ended.sum() < ended.size
  return samples


def _assert_same(samples, wanted):
  np.testing.assert_array_equal(samples.tokens, wanted.tokens)
  np.testing.assert_array_equal(samples.mask, wanted.mask)
  # Products of other shapes round differently on a CPU.
  np.testing.assert_allclose(samples.logprobs, wanted.logprobs, atol=2e-6)


@pytest.mark.parametrize('parts', [2, 4])
def test_responses_are_the_same_to_the_bit(inputs, whole, parts):
  config = dataclasses.replace(WHOLE, parts=parts)
  samples = _sample(*inputs, config)
  _assert_same(samples, whole)
  # Each part has ended by itself: rows i, i + parts, … of the batch.
  longest = whole.mask.sum(axis=-1).max(axis=-1).reshape(-1, parts).max(axis=0)
  assert samples.num_steps == longest.sum()


def test_parts_take_what_is_encoded(inputs, whole):
  prompts, keys = inputs
  encoded = jax.jit(functools.partial(MODEL.apply, method='encode'))(
    {'params': tiny_models.params(CONFIG)}, prompts
  )
  assert len(encoded) == BATCH
  config = dataclasses.replace(WHOLE, parts=2)
  _assert_same(_sample(encoded, keys, config), whole)


def test_every_device_works_in_every_part(preloaded, tmp_path):
  results = program_results.run(
    preloaded, 'sampling/parts_program.py', tmp_path
  )
  whole = results[1]
  for parts in (2, 4):
    np.testing.assert_array_equal(results[parts]['tokens'], whole['tokens'])
    np.testing.assert_allclose(
      results[parts]['logprobs'], whole['logprobs'], atol=1e-5
    )
    # What is saved is the caches of a device's rows of the other parts.
    saved = whole['temp_bytes'] - results[parts]['temp_bytes']
    assert saved > (1 - 1 / parts) * whole['cache_bytes']
