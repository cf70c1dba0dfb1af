"""Beam search gives what `transformers` gives, token for token.

See tests/golden/make_hf_beam_golden.py.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest

from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.sampling import beam

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NUM_BEAMS, EOS_FACTOR = 4, 1.5


@functools.cache
def _golden():
  with np.load(GOLDEN / 'hf_beams.npz') as arrays:
    return dict(arrays)


@functools.cache
def _model(name):
  """A committed model whose EOS is made likelier, and its variables."""
  config = hf.load_config(GOLDEN / name)
  flat = tree_paths.flatten(hf.load_params(GOLDEN / name, config))
  is_eos = np.arange(config.vocab_size) == 1
  factors = np.where(is_eos, EOS_FACTOR, 1.0).astype(np.float32)
  if config.logits_via_embedding:
    path, factors = 'token_embedder/embedding', factors[:, None]
  else:
    path = 'decoder/logits_dense/kernel'
  flat[path] = flat[path] * factors
  return t5.T5(config), {'params': tree_paths.unflatten(flat)}


@pytest.mark.parametrize('index, length_penalty', enumerate([0.6, 1.0, 2.0]))
@pytest.mark.parametrize('name', ['hf_t5_v1_0', 'hf_t5_v1_1', 'hf_t5_umt5'])
def test_responses_are_those_of_transformers(name, index, length_penalty):
  expected = _golden()[name][index]
  tokens = _golden()['prompts'].astype(np.int32)
  model, variables = _model(name)
  config = beam.BeamConfig(NUM_BEAMS, expected.shape[1], length_penalty)
  samples, _ = jax.jit(
    lambda variables, prompts: beam.beam_search(
      model, variables, prompts, config
    )
  )(variables, prompts_lib.of_tokens(tokens))
  assert len(expected) == 200
  np.testing.assert_array_equal(samples.tokens[:, 0], expected)
