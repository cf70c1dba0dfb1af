import dataclasses
import functools
import itertools

import jax
import numpy as np
import program_results
import pytest
import sampling_reference
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.models import t5
from perlhf_jax.sampling import beam
from perlhf_jax.sampling import sampler
from perlhf_jax.training import layer_layout

CONFIG = sampling_reference.CONFIG
MODEL = t5.T5(CONFIG)
BATCH, LENGTH = 4, 7
# Random weights of which most responses end, many of them early.
SEEDS = 0, 3, 21


def _variables(config=CONFIG, seed=0):
  return {'params': tiny_models.params(config, seed)}


def _prompts(vocab_size=CONFIG.vocab_size, seed=0):
  return tiny_models.prompts(seed, BATCH, 9, vocab_size)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _search(model, variables, prompts, config):
  return beam.beam_search(model, variables, prompts, config)


def _best(samples, row):
  return samples.tokens[row, 0][samples.mask[row, 0]].tolist()


@functools.cache
def _slow(seed):
  return sampling_reference.Slow(MODEL, _variables(seed=seed), LENGTH)


@pytest.mark.parametrize('length_penalty', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('num_beams', [1, 2, 4])
def test_matches_lists_of_hypotheses(num_beams, length_penalty):
  config = beam.BeamConfig(num_beams, LENGTH, length_penalty)
  for seed in SEEDS:
    samples, scores = _search(MODEL, _variables(seed=seed), _prompts(), config)
    assert samples.tokens.shape == (BATCH, 1, LENGTH)
    steps = []
    for row, prompt in enumerate(tiny_models.one_by_one(_prompts())):
      response, score, made = _slow(seed).beam_search(
        prompt, num_beams, length_penalty
      )
      steps.append(made)
      assert _best(samples, row) == response
      assert not samples.tokens[row, 0, len(response) :].any()
      np.testing.assert_allclose(scores[row], score, atol=1e-4)
      logprobs = [
        _slow(seed).logprobs(prompt, response[:index])[token]
        for index, token in enumerate(response)
      ]
      logprobs += [0.0] * (LENGTH - len(response))
      np.testing.assert_allclose(samples.logprobs[row, 0], logprobs, atol=1e-4)
    assert samples.num_steps == max(steps)


def test_a_beam_finds_what_greedy_decoding_misses():
  greedy, wide = (
    _search(MODEL, _variables(), _prompts(), beam.BeamConfig(n, LENGTH))[1]
    for n in (1, 5)
  )
  assert (wide >= greedy - 1e-5).all()
  assert (wide > greedy + 1e-2).any()


def test_one_beam_is_greedy():
  one, scores = _search(
    MODEL, _variables(), _prompts(), beam.BeamConfig(1, LENGTH)
  )
  greedy = jax.jit(
    lambda variables: sampler.sample(
      MODEL,
      variables,
      _prompts(),
      jax.random.split(jax.random.key(0), BATCH),
      sampler.SamplingConfig(LENGTH, temperature=0.0),
    )
  )(_variables())
  lengths = greedy.mask.sum(axis=(1, 2))
  assert lengths.min() < LENGTH
  np.testing.assert_array_equal(one.tokens, greedy.tokens)
  np.testing.assert_array_equal(one.mask, greedy.mask)
  np.testing.assert_allclose(one.logprobs, greedy.logprobs, atol=1e-5)
  np.testing.assert_allclose(
    scores, greedy.logprobs.sum(axis=(1, 2)) / lengths, atol=1e-5
  )


@pytest.mark.parametrize(('seed', 'length_penalty'), [(3, 0.0), (7, 1.0)])
def test_enough_beams_search_everything(seed, length_penalty):
  vocab, length = 4, 3
  model = t5.T5(dataclasses.replace(CONFIG, vocab_size=vocab))
  variables = {'params': tiny_models.params(model.config, seed)}
  prompts = _prompts(vocab, seed=2)
  greedy, _ = _search(model, variables, prompts, beam.BeamConfig(1, length))
  samples, scores = _search(
    model,
    variables,
    prompts,
    beam.BeamConfig(vocab**length, length, length_penalty),
  )
  everything = np.array(
    list(itertools.product(range(vocab), repeat=length)), np.int32
  )
  found = set()
  for row, prompt in enumerate(tiny_models.one_by_one(prompts)):
    logits = sampling_reference.teacher_forced_logits(
      model, variables, prompt, everything
    )
    candidates = {}
    for response, rows in zip(everything.tolist(), logits, strict=True):
      end = response.index(1) + 1 if 1 in response else length
      total = sum(
        sampling_reference.log_softmax(rows[i])[response[i]] for i in range(end)
      )
      candidates[tuple(response[:end])] = total / end**length_penalty
    best = max(candidates, key=candidates.get)
    found.add(best)
    assert _best(samples, row) == list(best)
    np.testing.assert_allclose(scores[row], candidates[best], atol=1e-4)
  assert len(found) > 1
  assert (samples.tokens != greedy.tokens).any()


def test_a_result_does_not_depend_on_how_long_others_search():
  # Probabilities alone favour short responses: some prompts are soon done.
  config = beam.BeamConfig(3, 20, length_penalty=0.0)
  whole, scores = _search(MODEL, _variables(), _prompts(), config)
  steps = []
  for row, prompt in enumerate(tiny_models.one_by_one(_prompts())):
    alone, score = _search(MODEL, _variables(), prompt, config)
    steps.append(int(alone.num_steps))
    assert _best(alone, 0) == _best(whole, row)
    np.testing.assert_allclose(score, scores[row : row + 1], atol=1e-5)
  assert min(steps) < max(steps) == whole.num_steps


def test_scanned_layers_follow_their_beams():
  config = dataclasses.replace(CONFIG, num_decoder_layers=2)
  scanned = dataclasses.replace(config, scan_layers=True)
  variables = _variables(config)
  stacked = {'params': layer_layout.stack_layers(variables['params'])}
  search = beam.BeamConfig(4, LENGTH)
  expected = _search(t5.T5(config), variables, _prompts(), search)
  actual = _search(t5.T5(scanned), stacked, _prompts(), search)
  np.testing.assert_array_equal(actual[0].tokens, expected[0].tokens)
  np.testing.assert_allclose(actual[1], expected[1], atol=1e-5)


def test_an_adapted_policy_on_a_mesh(preloaded, tmp_path):
  results = program_results.run(preloaded, 'sampling/beam_program.py', tmp_path)
  one, four = results[1, 1, 1], results[2, 1, 2]
  np.testing.assert_array_equal(four['tokens'], one['tokens'])
  np.testing.assert_array_equal(four['mask'], one['mask'])
  np.testing.assert_allclose(four['logprobs'], one['logprobs'], atol=1e-5)
  np.testing.assert_allclose(four['scores'], one['scores'], atol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'num_beams': 0},
      'num_beams is 0; it must be a whole number of at least 1',
    ),
    (
      {'max_length': 0},
      'max_length is 0; it must be a whole number of at least 1',
    ),
    (
      {'length_penalty': -1.0},
      'length_penalty is -1.0; it must be a number of at least 0',
    ),
    ({'length_penalty': float('nan')}, 'length_penalty is nan'),
  ],
)
def test_bad_configurations(fields, message):
  with pytest.raises(errors.ConfigError, match='BeamConfig.' + message):
    beam.BeamConfig(**{'num_beams': 2, 'max_length': 4, **fields})


def test_hypotheses_are_ranked_by_their_mean_by_default():
  assert beam.BeamConfig(4, 16) == beam.BeamConfig(4, 16, length_penalty=1.0)
