import dataclasses

import jax
import numpy as np
import pytest
import t5_reference
import tiny_models

from perlhf_jax.models import lora
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5

CONFIG = tiny_models.CONFIG


@pytest.fixture(scope='module')
def variables():
  rng = np.random.default_rng(7)
  _, adapters = tiny_models.adapted(lora.LoraConfig(rank=3))
  kernel = rng.normal(size=(CONFIG.emb_dim, 1)).astype(np.float32)
  bias = np.array([0.25], np.float32)
  return {
    'params': tiny_models.params(),
    'lora': adapters,
    'heads': {'score': {'kernel': kernel, 'bias': bias}},
  }


@pytest.fixture(scope='module')
def model():
  backbone, _ = tiny_models.adapted(lora.LoraConfig(rank=3))
  return reward_model.RewardModel(backbone)


@pytest.fixture(scope='module')
def score(model, variables):
  compiled = jax.jit(model.score)
  return lambda *batch: np.asarray(compiled(variables, *batch))


@pytest.fixture(scope='module')
def batch():
  return (
    tiny_models.prompts(0, 4, 9),
    *tiny_models.ragged_tokens(1, 4, 6),
  )


def _pad(batch, prompt_padding, response_padding, junk=0):
  prompts, response, response_mask = batch
  right = (0, 0), (0, response_padding)
  return (
    tiny_models.padded(prompts, prompt_padding, junk),
    np.pad(response, right, constant_values=junk),
    np.pad(response_mask, right),
  )


def _junk(batch, token):
  prompts, response, response_mask = batch
  return (
    tiny_models.with_junk(prompts, token),
    np.where(response_mask, response, token).astype(np.int32),
    response_mask,
  )


def test_scores_match_numpy_reference(variables, batch):
  full = {name: variables[name] for name in ('params', 'heads')}
  model = reward_model.RewardModel(t5.T5(CONFIG))
  scores = jax.jit(model.score)(full, *batch)
  params = jax.tree.map(np.float64, variables['params'])
  head = variables['heads']['score']
  prompts, response, response_mask = batch
  for b in range(len(prompts)):
    mask = prompts.mask[b]
    encoded = t5_reference.encode(params, prompts.tokens[b], mask, CONFIG)
    tokens = np.array([0, *response[b][response_mask[b]]])
    hidden = t5_reference.decode(params, encoded, mask, tokens, CONFIG)
    expected = hidden[-1] @ head['kernel'][:, 0] + head['bias'][0]
    np.testing.assert_allclose(scores[b], expected, atol=2e-5)
  assert np.std(scores) > 0.1


def test_scores_do_not_depend_on_padding_content(score, batch):
  expected = score(*batch)
  for token in (1, 2, CONFIG.vocab_size - 1):
    np.testing.assert_array_equal(score(*_junk(batch, token)), expected)


def test_scores_do_not_depend_on_padded_lengths(score, batch):
  expected = score(*batch)
  padded = score(*_pad(batch, 5, 3, junk=11))
  np.testing.assert_allclose(padded, expected, atol=1e-5)


def test_scores_do_not_depend_on_batch_size_or_order(score, batch):
  expected = score(*batch)
  order = np.array([2, 3, 1, 0])
  reordered = score(*tiny_models.rows(batch, order))
  np.testing.assert_allclose(reordered, expected[order], atol=1e-5)
  single = score(*tiny_models.rows(batch, slice(1, 2)))
  np.testing.assert_allclose(single[0], expected[1], atol=1e-5)
  double = score(*jax.tree.map(lambda x: np.concatenate([x, x]), batch))
  np.testing.assert_allclose(double, np.tile(expected, 2), atol=1e-5)


def test_pair_equals_two_single_scorings(model, score, variables, batch):
  prompts, chosen, chosen_mask = batch
  rejected, rejected_mask = tiny_models.ragged_tokens(2, 4, 6)
  pairs = jax.jit(model.scores)(
    variables,
    prompts,
    np.stack([chosen, rejected], axis=1),
    np.stack([chosen_mask, rejected_mask], axis=1),
  )
  assert pairs.shape == (4, 2)
  np.testing.assert_allclose(pairs[:, 0], score(*batch), atol=1e-5)
  np.testing.assert_allclose(
    pairs[:, 1],
    score(prompts, rejected, rejected_mask),
    atol=1e-5,
  )


def test_score_reads_the_last_response_token(score, batch):
  prompts, response, response_mask = batch
  before = score(*batch)
  last = response_mask.sum(axis=1) - 1
  changed = response.copy()
  changed[np.arange(4), last] = 7
  after = score(prompts, changed, response_mask)
  assert (np.abs(after - before) > 1e-4).all()
  # The whole prompt and the first token count too.
  for position in (0, 3):
    other = prompts.tokens.copy()
    other[0, position] = (other[0, position] + 1) % CONFIG.vocab_size
    after = score(prompts.replace(tokens=other), response, response_mask)
    assert abs(after[0] - before[0]) > 1e-5
    np.testing.assert_array_equal(after[1:], before[1:])


def test_a_row_of_padding_is_finite_and_harmless(score, batch):
  padded = jax.tree.map(np.array, batch)
  for x in jax.tree.leaves(padded):
    x[2] = 0
  scores = score(*padded)
  assert np.isfinite(scores).all()
  keep = np.array([0, 1, 3])
  np.testing.assert_array_equal(scores[keep], score(*batch)[keep])


def test_gradients_of_a_row_of_padding_are_finite(model, variables, batch):
  padded = jax.tree.map(np.zeros_like, batch)

  def loss(trainable):
    return model.score({**variables, **trainable}, *padded).sum()

  trainable = {name: variables[name] for name in ('lora', 'heads')}
  gradients = jax.jit(jax.grad(loss))(trainable)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_heads_are_float32_and_boxed():
  boxed = reward_model.init_heads(CONFIG, jax.random.key(0))
  kernel = boxed['score']['kernel']
  assert kernel.names == ('embed', None)
  assert kernel.unbox().shape == (CONFIG.emb_dim, 1)
  assert (boxed['score']['bias'] == 0).all()


def test_scores_of_a_bfloat16_backbone_are_float32(variables, batch):
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  model = reward_model.RewardModel(t5.T5(config))
  full = {name: variables[name] for name in ('params', 'heads')}
  scores = jax.eval_shape(model.score, full, *batch)
  assert scores.dtype == np.float32


@pytest.mark.parametrize('place', ['backbone', 'adapters'])
def test_dropout_is_on_with_a_key_and_only_then(variables, batch, place):
  rates = {place: 0.4}
  config = dataclasses.replace(CONFIG, dropout_rate=rates.get('backbone', 0.0))
  adapters = lora.LoraConfig(rank=3, dropout_rate=rates.get('adapters', 0.0))
  backbone, _ = tiny_models.adapted(adapters, config)
  model = reward_model.RewardModel(backbone)

  @jax.jit
  def score(prompts, rng=None):
    return model.score(variables, prompts, *batch[1:], dropout_rng=rng)

  off = score(batch[0])
  one, same, other = (
    score(batch[0], jax.random.key(seed)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, same)
  assert (np.abs(one - off) > 1e-4).all()
  assert (np.abs(one - other) > 1e-4).all()
  # In the encoder and in the decoder: another prompt's, or a bare response's,
  # noise would leave one of them as it is.
  without_head = {k: v for k, v in variables.items() if k != 'heads'}
  encode = jax.jit(lambda x: backbone.apply(without_head, x, method='encode'))
  of_decoder = score(encode(batch[0]), jax.random.key(0))
  assert (np.abs(of_decoder - off) > 1e-4).all()
  assert (np.abs(of_decoder - one) > 1e-4).all()
