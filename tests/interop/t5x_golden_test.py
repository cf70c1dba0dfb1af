"""Our T5 on T5X's checkpoints against what T5X computes.

Both are made by T5X itself, see tests/oracles/t5x.
"""

import functools

import jax
import numpy as np
import pytest
import t5x_directories

from perlhf_jax.core import tree_paths
from perlhf_jax.interop import t5x
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config

GATED = ('gelu', 'linear')
SIZES = dict(vocab_size=40, emb_dim=8, num_heads=4, head_dim=5, mlp_dim=24)
MODELS = {
  'v1_1': dict(
    num_encoder_layers=2, num_decoder_layers=1, mlp_activations=GATED
  ),
  'v1_0': dict(
    num_encoder_layers=1, num_decoder_layers=2, logits_via_embedding=True
  ),
  'umt5': dict(
    num_encoder_layers=2,
    num_decoder_layers=3,
    mlp_activations=GATED,
    relpos_bias_per_layer=True,
  ),
  'umt5_unrolled': dict(
    num_encoder_layers=1,
    num_decoder_layers=2,
    mlp_activations=GATED,
    logits_via_embedding=True,
    relpos_bias_per_layer=True,
  ),
}
LAYOUTS = {
  'v1_1': ('legacy', 'orbax'),
  'v1_0': ('legacy',),
  'umt5': ('legacy', 'orbax', 'placeholder'),
  'umt5_unrolled': ('legacy',),
}
each_folder = pytest.mark.parametrize(
  ('layout', 'name'),
  [(layout, name) for name, all_ in LAYOUTS.items() for layout in all_],
)


def _path(layout, name):
  return t5x_directories.GOLDEN / f't5x_{layout}_{name}'


@functools.cache
def _load(layout, name):
  path = _path(layout, name)
  config = t5x.load_config(path)
  return config, tree_paths.flatten(t5x.load_params(path, config))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, prompt, decoder_tokens):
  return t5.T5(config).apply({'params': params}, prompt, decoder_tokens)


@each_folder
def test_the_model_is_told_by_its_tensors(layout, name):
  assert t5x.is_t5x_checkpoint(_path(layout, name))
  config, _ = _load(layout, name)
  assert config == t5_config.T5Config(**SIZES, **MODELS[name])


@pytest.mark.parametrize('name', LAYOUTS)
def test_logits_are_those_of_t5x(name):
  config, flat = _load('legacy', name)
  with np.load(t5x_directories.GOLDEN / f't5x_{name}.npz') as golden:
    encoder, targets = golden['encoder_tokens'], golden['target_tokens']
    logits = golden['logits']
  mask = targets > 0
  assert not mask.all() and not (encoder > 0).all()
  found = _logits(
    config,
    tree_paths.unflatten(flat),
    prompts.Prompts(encoder, encoder > 0),
    np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
  )
  assert np.std(logits) > 0.5
  np.testing.assert_allclose(
    np.asarray(found)[mask], logits[mask], rtol=0, atol=1e-5
  )


@each_folder
def test_every_layout_holds_the_same_weights(layout, name):
  _, flat = _load(layout, name)
  _, legacy = _load('legacy', name)
  assert list(flat) == list(legacy)
  for path, array in flat.items():
    assert array.dtype == np.float32 and array.flags.c_contiguous
    np.testing.assert_array_equal(array, legacy[path], err_msg=path)
