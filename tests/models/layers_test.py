import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5_reference
import tiny_models

from perlhf_jax.models import layers


def _x(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_dense_is_a_matrix_product_without_bias():
  kernel = _x(5, 7)
  dense = layers.Dense(features=7, kernel_axes=('embed', 'mlp'))
  x = _x(2, 3, 5, seed=1)
  y = dense.apply({'params': {'kernel': kernel}}, x)
  expected = np.zeros((2, 3, 7))
  for index in np.ndindex(2, 3, 7):
    row, column = x[index[:2]], kernel[:, index[2]]
    expected[index] = sum(a * b for a, b in zip(row, column, strict=True))
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_dense_holds_float32_and_computes_in_its_dtype():
  dense = layers.Dense(7, ('embed', 'mlp'), dtype=jnp.bfloat16)
  x = _x(3, 5)
  variables = dense.init(jax.random.key(0), x)
  kernel = variables['params']['kernel']
  assert kernel.names == ('embed', 'mlp')
  assert kernel.unbox().dtype == jnp.float32
  y = dense.apply(nn.meta.unbox(variables), x)
  assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_rms_norm_matches_loop(dtype):
  x, scale = 100 * _x(2, 3, 8), _x(8, seed=1)
  y = layers.RMSNorm(dtype=dtype).apply({'params': {'scale': scale}}, x)
  assert y.dtype == dtype
  expected = t5_reference.rms_norm(np.float64(x), scale)
  tolerance = 1e-5 if dtype == jnp.float32 else 2**-8
  np.testing.assert_allclose(np.float64(y), expected, rtol=tolerance, atol=1e-6)


def test_rms_norm_of_large_bfloat16_does_not_overflow():
  x = jnp.full((1, 8), 1e30, jnp.bfloat16)
  scale = np.ones(8, np.float32)
  y = layers.RMSNorm(dtype=jnp.bfloat16).apply({'params': {'scale': scale}}, x)
  # The mean square overflows float32, and the output is 0: finite, no NaN.
  assert np.isfinite(np.float32(y)).all()


def test_embed_looks_up_and_attends():
  table = _x(11, 16)
  embed = layers.Embed(11, 16)
  variables = {'params': {'embedding': table}}
  tokens = np.array([[3, 0], [10, 3]], np.int32)
  np.testing.assert_array_equal(embed.apply(variables, tokens), table[tokens])
  x = _x(2, 4, 16, seed=2)
  logits = embed.apply(variables, x, method='attend')
  for b, t, v in np.ndindex(2, 4, 11):
    expected = float(np.dot(x[b, t], table[v])) / math.sqrt(16)
    np.testing.assert_allclose(logits[b, t, v], expected, atol=1e-5)


def test_tied_bfloat16_logits_are_float32():
  embed = layers.Embed(11, 16, dtype=jnp.bfloat16)
  logits = embed.apply(
    {'params': {'embedding': _x(11, 16)}}, _x(2, 16), method='attend'
  )
  assert logits.dtype == jnp.float32


@pytest.mark.parametrize(
  'activations',
  [('relu',), ('gelu',), ('gelu', 'linear'), ('silu', 'linear')],
)
def test_mlp_matches_reference(activations):
  config = dataclasses.replace(tiny_models.CONFIG, mlp_activations=activations)
  params = tiny_models.params(config)['encoder']['layers_0']['mlp']
  x = _x(2, 3, config.emb_dim)
  y = layers.Mlp(config).apply({'params': params}, x, deterministic=True)
  expected = t5_reference.mlp(
    jax.tree.map(np.float64, params), np.float64(x), activations
  )
  np.testing.assert_allclose(y, expected, atol=1e-5)
