"""The bounds hold, and are not far from what the compiler says."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_models

from perlhf_jax.models import activation_bytes
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.sampling import beam
from perlhf_jax.sampling import sampler
from perlhf_jax.training import memory

CONFIG = tiny_models.CONFIG
BLOCKS = dataclasses.replace(CONFIG, attention_block=64)
VOCABULARY = dataclasses.replace(CONFIG, vocab_size=20_000)
DEEP = dataclasses.replace(
  CONFIG, num_decoder_layers=6, scan_layers=True, dtype='bfloat16'
)


def _needed(config, function, batch, prompt_length, *more):
  """What the compiler says of a function of a model, weights and prompts."""
  model = encoder_decoder.make_model(config)
  prompts = prompts_lib.Prompts(
    jax.ShapeDtypeStruct((batch, prompt_length), np.int32),
    jax.ShapeDtypeStruct((batch, prompt_length), bool),
  )
  program = jax.jit(lambda *args: function(model, *args)).lower(
    nn.meta.unbox(tiny_models.abstract_variables(config)), prompts, *more
  )
  return memory.added_bytes(program.compile())


@pytest.mark.parametrize(
  ('config', 'batch', 'prompt_length', 'response_length'),
  [
    (CONFIG, 4, 512, 8),
    (CONFIG, 1, 512, 8),
    (CONFIG, 4, 8, 512),
    (BLOCKS, 4, 512, 8),
    (VOCABULARY, 4, 8, 64),
  ],
)
def test_scoring(config, batch, prompt_length, response_length):
  needed = _needed(
    config,
    lambda model, variables, *inputs: nn.softmax(
      model.apply(variables, *inputs)
    ).sum(-1),
    batch,
    prompt_length,
    jax.ShapeDtypeStruct((batch, response_length), np.int32),
  )
  bound = activation_bytes.scoring_bytes(
    config,
    batch=batch,
    prompt_length=prompt_length,
    response_length=response_length,
    with_logits=True,
  )
  assert needed / 3 < bound < needed


@pytest.mark.parametrize(
  ('config', 'batch', 'prompt_length', 'max_length', 'responses'),
  [
    (CONFIG, 2, 512, 8, 2),
    (CONFIG, 2, 8, 4096, 2),
    (DEEP, 2, 8, 4096, 2),
  ],
)
@pytest.mark.parametrize('search', [False, True])
def test_decoding(config, batch, prompt_length, max_length, responses, search):
  def function(model, variables, prompts):
    if search:
      settings = beam.BeamConfig(num_beams=responses, max_length=max_length)
      return beam.beam_search(model, variables, prompts, settings)[0].tokens
    settings = sampler.SamplingConfig(
      max_length=max_length, num_samples=responses
    )
    keys = jax.random.split(jax.random.key(0), batch)
    return sampler.sample(model, variables, prompts, keys, settings).tokens

  needed = _needed(config, function, batch, prompt_length)
  bound = activation_bytes.decoding_bytes(
    config,
    batch=batch,
    prompt_length=prompt_length,
    max_length=max_length,
    responses=responses,
  )
  assert needed / 6 < bound < needed


def test_a_mesh_divides_what_it_splits():
  sizes = dict(batch=2, prompt_length=64, response_length=64, with_logits=True)
  whole, half = (
    activation_bytes.scoring_bytes(CONFIG, **sizes, tensor=tensor)
    for tensor in (1, 2)
  )
  states = 2 * 64 * CONFIG.emb_dim * 4
  assert half - states == (whole - states) / 2


def test_no_length_takes_time():
  huge = dict(batch=10**3, prompt_length=10**9, max_length=10**12)
  assert activation_bytes.decoding_bytes(CONFIG, **huge) > 10**17
