import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5_reference
import tiny_models

from perlhf_jax.models import attention

CONFIG = tiny_models.CONFIG


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize(
  ('num_buckets', 'max_distance'), [(32, 128), (8, 10), (16, 20)]
)
def test_buckets_match_a_loop_over_pairs(
  bidirectional, num_buckets, max_distance
):
  positions = np.arange(-200, 201, dtype=np.int32)[None, :]
  actual = attention.relative_position_bucket(
    positions,
    bidirectional=bidirectional,
    num_buckets=num_buckets,
    max_distance=max_distance,
  )
  expected = [
    t5_reference.bucket(int(p), bidirectional, num_buckets, max_distance)
    for p in positions[0]
  ]
  np.testing.assert_array_equal(actual[0], expected)
  assert actual.dtype == np.int32
  assert set(expected) <= set(range(num_buckets))


def test_buckets_of_t5():
  def bucket(relative, bidirectional):
    return attention.relative_position_bucket(
      np.array([relative], np.int32),
      bidirectional=bidirectional,
      num_buckets=32,
      max_distance=128,
    )[0].tolist()

  # By hand: 8 exact distances, then 8·log(d/8)/log(16) rounded down.
  assert bucket([0, -1, -7, -8, -16, -32, -64, -128, -999], True) == [
    *(0, 1, 7, 8, 10, 12, 14, 15, 15)
  ]
  assert bucket([1, 7, 8, 128], True) == [17, 23, 24, 31]
  # The decoder sees no key after its query: all 32 are for the past.
  assert bucket([5, 0, -15, -16, -128], False) == [0, 0, 15, 16, 31]


@pytest.mark.parametrize('bidirectional', [True, False])
def test_position_bias_looks_up_its_table(bidirectional):
  table = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
  bias = attention.RelativePositionBias(CONFIG, bidirectional).apply(
    {'params': {'rel_embedding': table}}, 13, 13
  )
  square = t5_reference.position_bias(table, 13, bidirectional, CONFIG)
  # Down the first column of keys, and along the first row of queries.
  expected = np.concatenate([square[:, ::-1, 0], square[:, 0, 1:]], axis=1)
  np.testing.assert_array_equal(bias, expected.astype(np.float32))


def _attention_inputs(queries=5, keys=7):
  rng = np.random.default_rng(1)
  params = tiny_models.params()['encoder']['layers_0']['attention']
  x = rng.normal(size=(2, queries, CONFIG.emb_dim)).astype(np.float32)
  memory = rng.normal(size=(2, keys, CONFIG.emb_dim)).astype(np.float32)
  mask = np.array([[True] * 7, [True] * 4 + [False] * 3])
  bias = rng.normal(size=(2, queries + keys - 1)).astype(np.float32)
  return params, x, memory, mask, bias


def _attend(params, x, memory, mask, bias=None, config=CONFIG):
  return attention.Attention(config).apply(
    {'params': params},
    x,
    memory,
    mask_bias=attention.mask_to_bias(mask[:, None, None, :]),
    distance_bias=bias,
    deterministic=True,
  )


@pytest.mark.parametrize('with_bias', [True, False])
def test_attention_matches_loops(with_bias):
  params, x, memory, mask, bias = _attention_inputs()
  bias = bias if with_bias else None
  actual = _attend(params, x, memory, mask, bias)
  if with_bias:
    square = np.zeros((2, 5, 7))
    for q, k in np.ndindex(5, 7):
      square[:, q, k] = bias[:, k - q + 4]
    bias = square
  params = jax.tree.map(np.float64, params)
  for b in range(2):
    expected = t5_reference.attention(
      params, x[b], memory[b], np.tile(mask[b], (5, 1)), bias, CONFIG.num_heads
    )
    np.testing.assert_allclose(actual[b], expected, atol=1e-5)


def test_masked_keys_do_not_matter():
  params, x, memory, mask, _ = _attention_inputs()
  junk = np.where(mask[..., None], memory, 1e4).astype(np.float32)
  np.testing.assert_array_equal(
    _attend(params, x, memory, mask), _attend(params, x, junk, mask)
  )


def test_a_row_without_keys_is_finite():
  params, x, memory, mask, _ = _attention_inputs()
  y = _attend(params, x, memory, np.zeros_like(mask))
  assert np.isfinite(y).all()


def test_softmax_is_float32_in_bfloat16_models():
  params, x, memory, mask, _ = _attention_inputs()
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  jaxpr = jax.make_jaxpr(
    lambda x: _attend(params, x, memory, mask, config=config)
  )(x)
  exponents = [e for e in jaxpr.eqns if e.primitive.name == 'exp'] or [
    inner
    for e in jaxpr.eqns
    for value in e.params.values()
    if hasattr(value, 'eqns')
    for inner in value.eqns
    if inner.primitive.name == 'exp'
  ]
  assert exponents
  assert all(e.outvars[0].aval.dtype == jnp.float32 for e in exponents)


def test_responses_share_the_keys_of_their_prompt():
  params, _, memory, mask, _ = _attention_inputs()
  several = np.random.default_rng(2).normal(size=(6, 5, CONFIG.emb_dim))
  several = several.astype(np.float32)
  np.testing.assert_allclose(
    _attend(params, several, memory, mask),
    _attend(params, several, memory.repeat(3, 0), mask.repeat(3, 0)),
    atol=1e-6,
  )


def test_mask_to_bias():
  bias = attention.mask_to_bias(np.array([True, False]))
  assert bias.dtype == jnp.float32
  assert bias[0] == 0
  assert np.isfinite(bias[1]) and bias[1] < -1e9


def test_dropout_of_weights_keeps_the_mean_of_the_output():
  params, x, memory, mask, bias = _attention_inputs()
  config = dataclasses.replace(CONFIG, dropout_rate=0.3)

  @jax.jit
  @jax.vmap
  def dropped(key):
    return attention.Attention(config).apply(
      {'params': params},
      x,
      memory,
      mask_bias=attention.mask_to_bias(mask[:, None, None, :]),
      distance_bias=bias,
      deterministic=False,
      rngs={'dropout': key},
    )

  outputs = np.float64(dropped(jax.random.split(jax.random.key(0), 4000)))
  error = outputs.std(axis=0) / np.sqrt(len(outputs))
  off = _attend(params, x, memory, mask, bias)
  # The output is linear in the weights, so that its mean is exact. Without the
  # factor 1 / (1 - rate) it would be off by 0.3 of itself.
  z = (outputs.mean(axis=0) - off) / error
  assert np.abs(z).max() < 5
  assert (0.3 * np.abs(off) / error).max() > 20
