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
    'mask': draw(BATCH, 1, 1, KEYS),
    'distance': draw(HEADS, QUERIES + KEYS - 1),
  }


def _attend(arrays, block, kept=None, **layout):
  def drop(weights):
    return weights if kept is None else weights * kept

  return attend.attend(
    arrays['query'],
    arrays['key'],
    arrays['value'],
    drop,
    mask_bias=arrays['mask'],
    distance_bias=arrays['distance'],
    block=block,
    **layout,
  )


def _by_hand(arrays, kept):
  y = np.zeros_like(arrays['query'])
  for b, q, h in np.ndindex(BATCH, QUERIES, HEADS):
    logits = [
      arrays['query'][b, q, h] @ arrays['key'][b, k, h]
      + arrays['mask'][b, 0, q % arrays['mask'].shape[2], k]
      + arrays['distance'][h, k - q + QUERIES - 1]
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


@pytest.mark.parametrize('block', [None, 4])
def test_keys_may_lie_as_in_a_cache(arrays, block):
  last = {n: np.moveaxis(arrays[n], 1, -1) for n in ('key', 'value')}
  np.testing.assert_allclose(
    _attend({**arrays, **last}, block, keys_last=True),
    _by_hand(arrays, np.ones((BATCH, HEADS, 1, KEYS))),
    atol=1e-5,
  )


@pytest.mark.parametrize('block', [None, 4])
def test_a_mask_may_be_of_each_query(arrays, block):
  mask = np.random.default_rng(2).normal(size=(BATCH, 1, QUERIES, KEYS))
  arrays = {**arrays, 'mask': mask.astype(np.float32)}
  kept = np.ones((BATCH, HEADS, 1, KEYS))
  np.testing.assert_allclose(
    _attend(arrays, block), _by_hand(arrays, kept), atol=1e-5
  )


@pytest.mark.parametrize(('queries', 'keys'), [(1, 4), (4, 1), (3, 5), (5, 3)])
def test_a_bias_by_distance_is_laid_out_by_query(queries, keys):
  bias = np.arange(2 * (queries + keys - 1), dtype=np.float32).reshape(2, -1)
  laid_out = attend.by_query(bias, queries)
  assert laid_out.shape == (1, 2, queries, keys)
  for h, q, k in np.ndindex(2, queries, keys):
    assert laid_out[0, h, q, k] == bias[h, k - q + queries - 1]


@pytest.mark.parametrize('block', [3, 5])
def test_gradients_do_not_depend_on_blocks(arrays, block):
  def loss(arrays, block):
    return jnp.sum(jnp.sin(_attend(arrays, block)))

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5),
    jax.grad(loss)(arrays, block),
    jax.grad(loss)(arrays, None),
  )


def _largest(arrays, block):
  """Queries of the largest weights of a backward pass."""
  gradient = jax.grad(lambda x: jnp.sum(_attend(x, block)))
  shapes = re.findall(r'f32\[([\d,]+)\]', str(jax.make_jaxpr(gradient)(arrays)))
  sizes = [tuple(map(int, shape.split(','))) for shape in shapes]
  # Those of a bias by distance have batch 1.
  return max(
    q
    for b, h, q, k in {s for s in sizes if len(s) == 4}
    if (b, h, k) == (BATCH, HEADS, KEYS)
  )


def test_no_weights_of_more_queries_than_a_block_exist(arrays):
  assert _largest(arrays, QUERIES) == QUERIES
  assert _largest(arrays, 4) == 4


def test_blocks_are_chosen_from_the_shape(arrays, monkeypatch):
  # Of T5 1.1 base: 48 MiB are no reason to take parts.
  assert attend.choose_block(1, 12, 1024, 1024) == 1024
  block = attend.choose_block(8, 12, 1024, 1024)
  weights = 4 * 8 * 12 * block * 1024
  assert attend.WEIGHTS_BYTES / 2 < weights <= attend.WEIGHTS_BYTES
  # However long the prompt, products stay as wide as a block.
  assert attend.choose_block(128, 64, 4096, 4096) == 64
  monkeypatch.setattr(attend, 'choose_block', lambda *shape: 4)
  assert _largest(arrays, None) == 4


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


@pytest.mark.parametrize('block', [None, 1])
@pytest.mark.parametrize('keys_last', [False, True])
def test_logits_of_bfloat16_are_float32(block, keys_last):
  # All numbers are exact in bfloat16, but for the logits 300 and 301: there,
  # they would be one number, and both weights a half.
  query = jnp.broadcast_to(jnp.array([16.0, 1.0]), (1, 2, 1, 2))
  key = jnp.array([[18.0, 12.0], [18.0, 13.0]]).reshape(1, 2, 1, 2)
  value = jnp.eye(2).reshape(1, 2, 1, 2)
  if keys_last:
    key, value = jnp.moveaxis(key, 1, -1), jnp.moveaxis(value, 1, -1)
  y = attend.attend(
    *(x.astype(jnp.bfloat16) for x in (query, key, value)),
    lambda weights: weights,
    keys_last=keys_last,
    block=block,
  )
  assert y.dtype == jnp.bfloat16
  wanted = 1 / (1 + np.exp([1, -1]))
  np.testing.assert_allclose(np.float32(y[0, :, 0]), [wanted] * 2, rtol=0.005)
