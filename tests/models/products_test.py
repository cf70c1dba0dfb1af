import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import products


def _draw(*shape, seed=0, dtype=jnp.bfloat16):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), dtype)


def test_float32_is_a_plain_product():
  x, kernel = (_draw(*s, dtype=jnp.float32) for s in ((3, 4, 6), (6, 5)))
  plain, plain_pull = jax.vjp(jnp.dot, x, kernel)
  actual, pull = jax.vjp(products.product, x, kernel)
  np.testing.assert_array_equal(actual, plain)
  for got, wanted in zip(pull(actual), plain_pull(plain), strict=True):
    np.testing.assert_array_equal(got, wanted)


def test_bfloat16_is_not_rounded():
  x, kernel = _draw(30, 64), _draw(64, 50, seed=1)
  actual = products.product(x, kernel)
  assert actual.dtype == jnp.float32
  expected = np.float64(x) @ np.float64(kernel)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
  assert products.rounded(actual, jnp.bfloat16).dtype == jnp.bfloat16


def test_backward_pass_is_that_of_a_bfloat16_product():
  x, kernel = _draw(3, 4, 64), _draw(64, 50, seed=1)
  gradient = _draw(3, 4, 50, seed=2)
  _, plain_pull = jax.vjp(jnp.dot, x, kernel)
  _, pull = jax.vjp(
    lambda *args: products.rounded(products.product(*args), jnp.bfloat16),
    x,
    kernel,
  )
  for got, wanted in zip(pull(gradient), plain_pull(gradient), strict=True):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, wanted)
  # No product of the backward pass reads float32.
  text = jax.jit(pull).lower(gradient).as_text()
  dots = [line for line in text.splitlines() if 'dot_general' in line]
  assert len(dots) == 2 and not any('f32' in line for line in dots)


def test_a_frozen_kernel_has_no_gradient_of_its_own():
  x, kernel = _draw(8, 64), _draw(64, 50, seed=1)

  def loss(x):
    return jnp.sum(jnp.square(products.product(x, kernel)))

  text = str(jax.make_jaxpr(jax.grad(loss))(x))
  assert text.count('dot_general') == 2  # Forward, and towards x.


@pytest.mark.parametrize('tuning', ['full', 'lora'])
def test_minimal_remat_keeps_products_in_bfloat16(tuning):
  config = dataclasses.replace(
    tiny_models.CONFIG,
    dtype='bfloat16',
    remat_policy='minimal',
    scan_layers=True,
  )
  prompt = tiny_models.prompts(0, 3, 9)
  response, _ = tiny_models.ragged_tokens(1, 3, 7)
  model, lora = tiny_models.adapted(lora_lib.LoraConfig(rank=2), config)
  variables = {'params': tiny_models.params(config), 'lora': lora}
  name = 'params' if tuning == 'full' else 'lora'
  if tuning == 'full':
    model = encoder_decoder.make_model(config)
    del variables['lora']
  trained = variables.pop(name)
  _, pull = jax.vjp(
    lambda trained: model.apply({**variables, name: trained}, prompt, response),
    trained,
  )
  # [layers, batch, length, features]: every stack of activations that is kept.
  kept = [
    leaf
    for leaf in jax.tree.leaves(pull)
    if leaf.ndim == 4 and leaf.shape[1:3] in {(3, 9), (3, 7)}
  ]
  assert len(kept) > 10
  assert {leaf.dtype for leaf in kept} == {jnp.dtype('bfloat16')}
  # Hidden states of the MLPs: `wi_0` and `wi_1`, of encoder and decoder.
  hidden = [leaf for leaf in kept if leaf.shape[-1] == config.mlp_dim]
  assert len(hidden) == (4 if tuning == 'full' else 0)
