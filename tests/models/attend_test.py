"""Attention in blocks of queries, against attention of all at once."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.models import attend
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.training import layer_layout

BATCH, QUERIES, KEYS, HEADS, HEAD_DIM = 3, 10, 7, 2, 3


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  return {
    'query': draw(BATCH, QUERIES, HEADS, HEAD_DIM),
    'key': draw(BATCH, KEYS, HEADS, HEAD_DIM),
    'value': draw(BATCH, KEYS, HEADS, HEAD_DIM),
    # One for all queries of a row, and one of a position each.
    'mask': draw(BATCH, 1, 1, KEYS),
    'position': draw(1, HEADS, QUERIES, KEYS),
  }


def _attend(arrays, block, kept=None):
  def drop(weights):
    return weights if kept is None else weights * kept

  return attend.attend(
    arrays['query'],
    arrays['key'],
    arrays['value'],
    [arrays['mask'], arrays['position']],
    drop,
    block,
  )


def _by_hand(arrays, kept):
  y = np.zeros_like(arrays['query'])
  for b, q, h in np.ndindex(BATCH, QUERIES, HEADS):
    logits = [
      arrays['query'][b, q, h] @ arrays['key'][b, k, h]
      + arrays['mask'][b, 0, 0, k]
      + arrays['position'][0, h, q, k]
      for k in range(KEYS)
    ]
    weights = np.exp(logits) / np.sum(np.exp(logits)) * kept[b, h, 0]
    y[b, q, h] = weights @ arrays['value'][b, :, h]
  return y


@pytest.mark.parametrize('block', [None, 1, 3, 4, 5, 10, 99])
def test_any_block_gives_softmax_attention_with_the_same_dropout(arrays, block):
  kept = np.random.default_rng(1).integers(0, 2, (BATCH, HEADS, 1, KEYS))
  np.testing.assert_allclose(
    _attend(arrays, block, kept), _by_hand(arrays, kept), atol=1e-5
  )


@pytest.mark.parametrize('block', [3, 5])
def test_gradients_do_not_depend_on_blocks(arrays, block):
  def loss(arrays, block):
    return jnp.sum(jnp.sin(_attend(arrays, block)))

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5),
    jax.grad(loss)(arrays, block),
    jax.grad(loss)(arrays, None),
  )


def test_no_weights_of_more_queries_than_a_block_exist(arrays):
  def largest(block):
    gradient = jax.grad(lambda x: jnp.sum(_attend(x, block)))
    shapes = re.findall(
      r'f32\[([\d,]+)\]', str(jax.make_jaxpr(gradient)(arrays))
    )
    sizes = [tuple(map(int, shape.split(','))) for shape in shapes]
    # Those of the position bias have batch 1.
    return max(
      q
      for b, h, q, k in {s for s in sizes if len(s) == 4}
      if (b, h, k) == (BATCH, HEADS, KEYS)
    )

  assert largest(None) == QUERIES
  assert largest(4) == 4


@pytest.mark.parametrize('scan_layers', [False, True])
def test_a_model_with_blocks_is_the_same_model(scan_layers):
  base = dataclasses.replace(
    tiny_models.CONFIG, scan_layers=scan_layers, dropout_rate=0.3
  )
  params = layer_layout.to_layout(tiny_models.params(), scan_layers)
  rng = np.random.default_rng(2)
  prompt = prompts.of_tokens(rng.integers(1, 40, (2, 9)).astype(np.int32))
  response = rng.integers(1, 40, (2, 5)).astype(np.int32)

  def gradient(config):
    def loss(params):
      logits = t5.T5(config).apply(
        {'params': params},
        prompt,
        response,
        deterministic=False,
        rngs={'dropout': jax.random.key(0)},
      )
      return jnp.sum(jnp.tanh(logits)), logits

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  blocks = dataclasses.replace(base, attention_block=2, remat_policy='full')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4),
    gradient(blocks),
    gradient(base),
  )
