"""Decoding token by token against decoding with teacher forcing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.core import masking
from perlhf_jax.core import tree_paths
from perlhf_jax.models import attention
from perlhf_jax.models import kv_cache
from perlhf_jax.models import lora
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.training import partitioning

CONFIG = tiny_models.CONFIG
BATCH, RESPONSES, PROMPT_LENGTH, LENGTH = 3, 2, 9, 14
ROWS = BATCH * RESPONSES


def _tokens():
  prompts = tiny_models.prompts(0, BATCH, PROMPT_LENGTH)
  assert not prompts.mask.all()
  responses, _ = tiny_models.ragged_tokens(1, ROWS, LENGTH)
  return prompts, np.asarray(masking.shift_right(responses))


def _encoded(prompts):
  """What an encoder might give, of the right shape."""
  states = jnp.zeros((*prompts.tokens.shape, CONFIG.emb_dim))
  return prompts_lib.Encoded(states, prompts.mask)


def _model(adapted=False, **fields):
  config = dataclasses.replace(CONFIG, **fields)
  params = tiny_models.params(config)
  if not adapted:
    return t5.T5(config), {'params': params}
  model, adapters = tiny_models.adapted(lora.LoraConfig(rank=3), config)
  return model, {'params': params, 'lora': adapters}


def _step(model, variables, encoded, tokens, position):
  return model.apply(
    variables,
    encoded,
    tokens,
    position,
    method='decode_one',
    mutable=['cache'],
  )


def _one_by_one(model, variables, prompts, inputs):
  """Hidden states `[rows, length, embed]`, of one step a position."""
  encoded = model.apply(variables, prompts, method='encode')
  length = inputs.shape[1]

  def step(collections, index):
    position = kv_cache.CachePosition(index, length)
    tokens = jax.lax.dynamic_slice_in_dim(inputs, index, 1, axis=1)
    return _step(model, collections, encoded, tokens, position)

  first, cache = step(variables, jnp.int32(0))

  def later(cache, index):
    hidden, cache = step({**variables, **cache}, index)
    return cache, hidden

  _, rest = jax.lax.scan(later, cache, jnp.arange(1, length))
  return jnp.concatenate([first, *rest], axis=1)


def _teacher_forced(model, variables, prompts, inputs):
  encoded = model.apply(variables, prompts, method='encode')
  return model.apply(variables, encoded, inputs, method='decode')


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'scan_layers': True},
    {'relpos_bias_per_layer': True},
    {'relpos_bias_per_layer': True, 'scan_layers': True},
    {'adapted': True},
    {'adapted': True, 'scan_layers': True, 'remat_policy': 'full'},
  ],
  ids=lambda fields: '-'.join(map(str, fields)) or 'plain',
)
def test_states_equal_teacher_forcing(fields):
  model, variables = _model(**fields)
  actual, expected = (
    jax.jit(functools.partial(run, model))(variables, *_tokens())
    for run in (_one_by_one, _teacher_forced)
  )
  assert expected.shape == (ROWS, LENGTH, CONFIG.emb_dim)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_bfloat16_caches_are_bfloat16_and_states_close():
  model, variables = _model(dtype='bfloat16')
  actual, expected = (
    np.float32(jax.jit(functools.partial(run, model))(variables, *_tokens()))
    for run in (_one_by_one, _teacher_forced)
  )
  error = np.sqrt(np.mean((actual - expected) ** 2)) / np.std(expected)
  assert error < 4 * 2.0**-8
  leaves = jax.tree.leaves(_abstract_cache(model, variables))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('bfloat16')}


def _abstract_cache(model, variables):
  prompts, inputs = _tokens()
  encoded = _encoded(prompts)

  def make():
    position = kv_cache.CachePosition(jnp.int32(0), LENGTH)
    return _step(model, variables, encoded, inputs[:, :1], position)[1]

  return jax.eval_shape(make)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_prompts_are_cached_once_and_responses_each(scan_layers):
  shapes = {
    path: leaf.shape
    for path, leaf in tree_paths.flatten(
      _abstract_cache(*_model(scan_layers=scan_layers))['cache']
    ).items()
  }
  heads = (CONFIG.num_heads, CONFIG.head_dim)
  prefix, layers = (
    ((2,), ['layers']) if scan_layers else ((), ['layers_0', 'layers_1'])
  )
  expected = {}
  for layer in layers:
    for name in ('key', 'value'):
      path = f'decoder/{layer}'
      expected[f'{path}/self_attention/response_{name}'] = (
        *prefix,
        ROWS,
        *heads,
        LENGTH,
      )
      expected[f'{path}/encoder_decoder_attention/prompt_{name}'] = (
        *prefix,
        BATCH,
        *heads,
        PROMPT_LENGTH,
      )
  assert shapes == expected


def _is_of_the_prompt(path):
  is_cross = 'encoder_decoder_attention/' in path
  return path.startswith('encoder/') or (
    is_cross and ('/key/' in path or '/value/' in path)
  )


@pytest.mark.parametrize('scan_layers', [False, True])
def test_later_steps_neither_need_nor_read_the_prompt(scan_layers):
  model, variables = _model(adapted=True, scan_layers=scan_layers)
  prompts, inputs = _tokens()
  pruned = {}
  for name, tree in variables.items():
    flat = tree_paths.flatten(tree)
    kept = {p: v for p, v in flat.items() if not _is_of_the_prompt(p)}
    assert 0 < len(kept) < len(flat)
    pruned[name] = tree_paths.unflatten(kept)

  def step(collections, encoded, index):
    position = kv_cache.CachePosition(jnp.int32(index), LENGTH)
    tokens = inputs[:, index : index + 1]
    return _step(model, collections, encoded, tokens, position)

  @jax.jit
  def second_states():
    encoded = model.apply(variables, prompts, method='encode')
    _, cache = step(variables, encoded, 0)
    junk = encoded.replace(states=jnp.full_like(encoded.states, jnp.nan))
    return [
      step({**collections, **cache}, memory, 1)[0]
      for collections, memory in ((variables, encoded), (pruned, junk))
    ]

  whole, without_prompt = second_states()
  np.testing.assert_array_equal(whole, without_prompt)
  # The first step does need them.
  encoded = _encoded(prompts)
  with pytest.raises(Exception, match='encoder_decoder_attention/key'):
    jax.eval_shape(lambda: step(pruned, encoded, 0))


@pytest.mark.parametrize('bidirectional', [False, True])
def test_the_bias_of_one_query_is_its_part_of_that_of_all(bidirectional):
  table = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
  module = attention.RelativePositionBias(CONFIG, bidirectional)
  variables = {'params': {'rel_embedding': table}}
  whole = module.apply(variables, 13, 13)

  def row(index):
    position = kv_cache.CachePosition(index, 13)
    return module.apply(variables, 1, 13, position)

  for index in range(13):
    np.testing.assert_array_equal(
      row(jnp.int32(index)), whole[:, 12 - index : 25 - index]
    )
  sizes = [
    variable.aval.size
    for eqn in jax.make_jaxpr(row)(jnp.int32(0)).eqns
    for variable in eqn.outvars
  ]
  assert max(sizes) <= 2 * 13


def test_the_other_paths_make_no_cache():
  model, variables = _model()
  _, updated = model.apply(variables, *_tokens(), mutable=['cache'])
  assert not updated
  assert set(tiny_models.abstract_variables(CONFIG)) == {'params'}


@pytest.mark.parametrize('scan_layers', [False, True])
def test_rows_are_taken_of_responses_only(scan_layers):
  abstract = _abstract_cache(*_model(scan_layers=scan_layers))['cache']
  rng = np.random.default_rng(0)
  cache = jax.tree.map(
    lambda leaf: np.float32(rng.normal(size=leaf.shape)), abstract
  )
  rows = np.array([1, 1, 2, 3, 5, 4], np.int32)
  before = tree_paths.flatten(cache)
  after = tree_paths.flatten(kv_cache.take_rows(cache, rows))
  assert set(before) == set(after)
  for path, leaf in before.items():
    if 'encoder_decoder' in path:
      expected = leaf
    elif scan_layers:
      expected = leaf[:, rows]
    else:
      expected = leaf[rows]
    np.testing.assert_array_equal(after[path], expected)


def test_caches_are_constrained_to_the_mesh():
  model, variables = _model()
  prompts, inputs = _tokens()
  encoded = _encoded(prompts)
  position = kv_cache.CachePosition(jnp.int32(0), LENGTH)
  with partitioning.use_mesh(partitioning.make_mesh()):
    jaxpr = jax.make_jaxpr(
      lambda: _step(model, variables, encoded, inputs[:, :1], position)
    )()
  specs = [
    tuple(eqn.params['sharding'].spec)
    for eqn in jaxpr.eqns
    if eqn.primitive.name == 'sharding_constraint'
    and eqn.outvars[0].aval.shape[-1] in (LENGTH, PROMPT_LENGTH)
  ]
  # Keys and values, of the prompt and of the response, in two layers.
  assert specs == [(('data', 'fsdp'), 'tensor', None, None)] * 8
