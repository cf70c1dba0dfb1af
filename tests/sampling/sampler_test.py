import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling_reference
from scipy import stats
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.interop import hf
from perlhf_jax.models import lora
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.sampling import sampler

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CONFIG = sampling_reference.CONFIG
MODEL = t5.T5(CONFIG)
BATCH, LENGTH = 4, 12
# Of most tests: it compiles once.
PLAIN = sampler.SamplingConfig(LENGTH, num_samples=2)


def _variables():
  return {'params': tiny_models.params(CONFIG)}


def _prompts(batch=BATCH):
  prompts = tiny_models.prompts(0, batch, 9, CONFIG.vocab_size)
  assert batch == 1 or not prompts.mask.all()
  return prompts


def _keys(batch=BATCH, seed=3):
  return jax.random.split(jax.random.key(seed), batch)


@functools.partial(jax.jit, static_argnums=(0, 4), static_argnames='early_stop')
def _sample(model, variables, prompts, keys, config, early_stop=True):
  return sampler.sample(
    model, variables, prompts, keys, config, early_stop=early_stop
  )


def _draw(config, prompts=None, keys=None, **options):
  prompts = _prompts() if prompts is None else prompts
  keys = _keys(len(prompts)) if keys is None else keys
  samples = _sample(MODEL, _variables(), prompts, keys, config, **options)
  return jax.tree.map(np.asarray, samples)


def _check_shape_and_padding(samples, batch, config):
  shape = (batch, config.num_samples, config.max_length)
  assert samples.tokens.shape == shape and samples.tokens.dtype == np.int32
  assert samples.mask.shape == shape and samples.mask.dtype == bool
  assert samples.logprobs.shape == shape
  assert samples.logprobs.dtype == np.float32
  for row in np.ndindex(shape[:2]):
    tokens = samples.tokens[row].tolist()
    length = tokens.index(1) + 1 if 1 in tokens else len(tokens)
    assert samples.mask[row].tolist() == [
      position < length for position in range(shape[2])
    ]
    assert not any(tokens[length:])
    assert (samples.logprobs[row][:length] <= 0).all()
    assert not samples.logprobs[row][length:].any()


@pytest.mark.parametrize(
  'warping',
  [
    {},
    {'temperature': 0.6, 'top_k': 4},
    {'top_p': 0.8},
    {'temperature': 1.7, 'top_k': 6, 'top_p': 0.7},
    {'temperature': 0.0},
  ],
  ids=str,
)
def test_logprobs_are_those_of_the_warped_distribution(warping):
  config = dataclasses.replace(PLAIN, **warping)
  samples = _draw(config)
  _check_shape_and_padding(samples, BATCH, config)
  logits = np.asarray(
    sampling_reference.teacher_forced_logits(
      MODEL, _variables(), _prompts(), samples.tokens.reshape(-1, LENGTH)
    )
  ).reshape(*samples.tokens.shape, CONFIG.vocab_size)
  for index in zip(*np.nonzero(samples.mask), strict=True):
    expected = sampling_reference.warp(
      logits[index], config.temperature, config.top_k, config.top_p
    )[samples.tokens[index]]
    np.testing.assert_allclose(samples.logprobs[index], expected, atol=1e-4)


def test_some_end_and_some_run_out_of_room():
  samples = _draw(PLAIN)
  _check_shape_and_padding(samples, BATCH, PLAIN)
  ended = (samples.tokens == 1).any(axis=-1)
  assert 0 < ended.sum() < ended.size
  assert samples.mask[~ended].all()


def test_one_token():
  config = sampler.SamplingConfig(1, num_samples=8)
  samples = _draw(config)
  _check_shape_and_padding(samples, BATCH, config)
  assert samples.num_steps == 1
  assert len(set(samples.tokens.ravel().tolist())) > 2


def test_temperature_zero_is_a_slow_argmax_loop():
  config = dataclasses.replace(PLAIN, temperature=0.0)
  samples = _draw(config)
  _check_shape_and_padding(samples, BATCH, config)
  slow = sampling_reference.Slow(MODEL, _variables(), LENGTH)
  lengths = set()
  for row, prompt in enumerate(tiny_models.one_by_one(_prompts())):
    expected = slow.greedy(prompt)
    lengths.add(len(expected))
    for tokens, valid in zip(
      samples.tokens[row], samples.mask[row], strict=True
    ):
      assert tokens[valid].tolist() == expected
  assert len(lengths) > 1


def test_adapted_and_scanned_model():
  config = dataclasses.replace(CONFIG, num_decoder_layers=2, scan_layers=True)
  model, adapters = tiny_models.adapted(lora.LoraConfig(rank=3), config)
  variables = {'params': tiny_models.params(config), 'lora': adapters}
  samples = _sample(
    model,
    variables,
    _prompts(),
    _keys(),
    sampler.SamplingConfig(LENGTH, temperature=0.9, num_samples=2),
  )
  logits = sampling_reference.teacher_forced_logits(
    model, variables, _prompts(), samples.tokens.reshape(-1, LENGTH)
  )
  logprobs = jax.nn.log_softmax(logits / 0.9)
  expected = jnp.take_along_axis(
    logprobs.reshape(*samples.tokens.shape, -1), samples.tokens[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(
    samples.logprobs, np.where(samples.mask, expected, 0), atol=1e-4
  )


def _pair_counts(samples):
  """How often each first and second token came, `[vocab, vocab]`."""
  counts = np.zeros((CONFIG.vocab_size, CONFIG.vocab_size))
  pairs = samples.tokens[..., :2].reshape(-1, 2)
  np.add.at(counts, tuple(pairs.T), 1)
  return counts


def _pair_probabilities(temperature, top_k, top_p):
  """Their exact probabilities; after EOS there is nothing but padding."""
  vocab = CONFIG.vocab_size
  first = np.arange(vocab, dtype=np.int32)
  responses = np.stack([first, first], axis=1)
  logits = np.asarray(
    sampling_reference.teacher_forced_logits(
      MODEL, _variables(), _prompts(1), responses
    )
  )
  warp = functools.partial(
    sampling_reference.warp,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
  )
  probabilities = np.exp(warp(logits[0, 0]))[:, None] * np.exp(
    [warp(row) for row in logits[:, 1]]
  )
  probabilities[1] = np.eye(vocab)[0] * probabilities[1].sum()
  return probabilities


def _p_value(counts, probabilities):
  """Of a chi-square test; cells expected fewer than 5 times are one."""
  expected = probabilities * counts.sum()
  rare = expected < 5
  expected = np.append(expected[~rare], expected[rare].sum())
  observed = np.append(counts[~rare], counts[rare].sum())
  if observed[expected == 0].any():
    return 0.0
  observed, expected = observed[expected > 0], expected[expected > 0]
  return stats.chisquare(observed, expected).pvalue


@pytest.mark.parametrize(
  'warping', [(1.0, None, 1.0), (1.5, 8, 0.9)], ids=['plain', 'warped']
)
def test_frequencies_are_the_probabilities(warping):
  prompts = jax.tree.map(lambda x: x.repeat(40, axis=0), _prompts(1))
  config = sampler.SamplingConfig(2, *warping, num_samples=100)
  counts = _pair_counts(_draw(config, prompts))
  probabilities = _pair_probabilities(*warping)
  assert counts.sum() == 4000
  assert (probabilities * 4000 > 5).sum() > 20
  assert _p_value(counts, probabilities) > 1e-3
  # The test is no rubber stamp: a temperature close by is told apart.
  temperature, *rest = warping
  wrong = _pair_probabilities(1.5 * temperature, *rest)
  assert _p_value(counts, wrong) < 1e-6


def test_a_response_does_not_depend_on_its_batch():
  whole = _draw(PLAIN)
  lengths = whole.mask.sum(axis=-1).max(axis=1)
  assert lengths.min() < lengths.max()
  order = np.array([2, 0, 3, 1])
  prompts = _prompts()
  permuted = _draw(PLAIN, tiny_models.rows(prompts, order), _keys()[order])
  np.testing.assert_array_equal(permuted.tokens, whole.tokens[order])
  np.testing.assert_allclose(
    permuted.logprobs, whole.logprobs[order], atol=1e-5
  )
  for row in range(BATCH):
    part = slice(row, row + 1)
    alone = _draw(PLAIN, tiny_models.rows(prompts, part), _keys()[part])
    assert alone.num_steps == lengths[row]
    np.testing.assert_array_equal(alone.tokens, whole.tokens[part])
    np.testing.assert_allclose(alone.logprobs, whole.logprobs[part], atol=1e-5)


def test_a_response_does_not_depend_on_the_room_or_on_padding():
  long = _draw(PLAIN)
  prompts = tiny_models.padded(_prompts(), 6)
  short = _draw(dataclasses.replace(PLAIN, max_length=5), prompts)
  assert long.mask[..., 5:].any()
  np.testing.assert_array_equal(long.tokens[..., :5], short.tokens)
  np.testing.assert_array_equal(long.mask[..., :5], short.mask)
  np.testing.assert_allclose(long.logprobs[..., :5], short.logprobs, atol=1e-5)


def test_a_response_does_not_depend_on_the_number_of_samples():
  two = _draw(PLAIN)
  three = _draw(dataclasses.replace(PLAIN, num_samples=3))
  np.testing.assert_array_equal(three.tokens[:, :2], two.tokens)
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert (three.tokens[:, a] != three.tokens[:, b]).any()


def test_keys_decide():
  one, again, other = (_draw(PLAIN, keys=_keys(seed=s)) for s in (1, 1, 2))
  np.testing.assert_array_equal(one.tokens, again.tokens)
  assert (one.tokens != other.tokens).any(axis=(1, 2)).all()


def test_early_stop_gives_the_same_in_fewer_steps():
  shortest = _draw(PLAIN).mask.sum(axis=-1).max(axis=1).argmin()
  part = slice(shortest, shortest + 1)
  row = tiny_models.rows(_prompts(), part), _keys()[part]
  early = _draw(PLAIN, *row)
  full = _draw(PLAIN, *row, early_stop=False)
  assert early.num_steps == early.mask.sum(axis=-1).max()
  assert early.num_steps < full.num_steps == LENGTH
  for name in ('tokens', 'mask', 'logprobs'):
    np.testing.assert_array_equal(getattr(early, name), getattr(full, name))


def _trace(config):
  """Returns the jaxpr of sampling and, of its equations, the loop."""
  jaxpr = jax.make_jaxpr(
    lambda variables: sampler.sample(
      MODEL, variables, _prompts(), _keys(), config
    )
  )(_variables()).jaxpr
  (loop,) = (
    eqn
    for eqn in jaxpr.eqns
    if eqn.primitive.name == 'while' and len(eqn.invars) > 15
  )
  return jaxpr, loop


def test_the_loop_reads_no_weights_of_the_prompt():
  jaxpr, loop = _trace(sampler.SamplingConfig(LENGTH))
  paths = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(_variables())
  ]
  read = {
    path
    for path, variable in zip(paths, jaxpr.invars, strict=True)
    if any(variable is other for other in loop.invars)
  }
  cross = 'params/decoder/layers_0/encoder_decoder_attention'
  assert f'{cross}/query/kernel' in read
  assert not read & {f'{cross}/key/kernel', f'{cross}/value/kernel'}
  assert not any('encoder/' in p.replace('decoder/', '') for p in read)


def test_the_loop_transposes_no_cache():
  # XLA would move the transposition of a prompt's cache out of the loop, and
  # transpose it back in each step.
  _, loop = _trace(sampler.SamplingConfig(LENGTH))
  length = _prompts().tokens.shape[1]
  cache = (BATCH, CONFIG.num_heads, CONFIG.head_dim, length)
  equations = loop.params['body_jaxpr'].jaxpr.eqns
  read = [
    eqn.primitive.name
    for eqn in equations
    if any(getattr(x.aval, 'shape', None) == cache for x in eqn.invars)
  ]
  assert set(read) == {'dot_general'}


@pytest.mark.parametrize(
  'name', ['hf_t5_v1_0', 'hf_t5_v1_1', 'hf_t5_gated_tied']
)
def test_greedy_tokens_are_those_of_transformers(name):
  config = hf.load_config(GOLDEN / name)
  with np.load(GOLDEN / f'{name}.npz') as golden:
    expected = golden['greedy_tokens']
    prompts = prompts_lib.Prompts(
      golden['encoder_tokens'], golden['encoder_mask']
    )
  batch, length = expected.shape
  samples = _sample(
    t5.T5(config),
    {'params': hf.load_params(GOLDEN / name, config)},
    prompts,
    _keys(batch),
    sampler.SamplingConfig(length, temperature=0.0),
  )
  np.testing.assert_array_equal(samples.tokens[:, 0], expected)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'max_length': 0},
      'max_length is 0; it must be a whole number of at least 1',
    ),
    (
      {'temperature': -0.5},
      'temperature is -0.5; it must be a number of at least 0',
    ),
    ({'temperature': float('nan')}, 'temperature is nan'),
    ({'temperature': float('inf')}, 'temperature is inf'),
    (
      {'top_k': 0},
      'top_k is 0; it must be a whole number of at least 1 or None',
    ),
    (
      {'top_p': 0.0},
      'top_p is 0.0; it must be a number above 0 and of at most 1',
    ),
    ({'top_p': 1.5}, 'top_p is 1.5'),
    (
      {'num_samples': 0},
      'num_samples is 0; it must be a whole number of at least 1',
    ),
  ],
)
def test_bad_configurations(fields, message):
  with pytest.raises(errors.ConfigError, match='SamplingConfig.' + message):
    sampler.SamplingConfig(**{'max_length': 4, **fields})


def test_by_default_the_models_own_distribution_is_drawn_from_once():
  assert sampler.SamplingConfig(4) == sampler.SamplingConfig(
    max_length=4,
    temperature=1.0,
    top_k=None,
    top_p=1.0,
    num_samples=1,
    parts=1,
  )
