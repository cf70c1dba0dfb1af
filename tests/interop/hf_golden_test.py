"""Our T5 on Hugging Face weights against what transformers computes.

The arrays and directories are made by tests/golden/make_hf_t5_golden.py.
"""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.models import prompts
from perlhf_jax.models import t5

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
MODELS = (
  'hf_t5_v1_0',
  'hf_t5_v1_1',
  'hf_t5_gated_tied',
  'hf_t5_mt5',
  'hf_t5_umt5',
)
TOLERANCE = 1e-4

every_model = pytest.mark.parametrize('name', MODELS)


@functools.cache
def _load(name):
  config = hf.load_config(GOLDEN / name)
  return config, hf.load_params(GOLDEN / name, config)


def _golden(name):
  with np.load(GOLDEN / f'{name}.npz') as arrays:
    return dict(arrays)


@functools.partial(jax.jit, static_argnames='config')
def _logits(config, params, prompt, decoder_tokens):
  return t5.T5(config).apply({'params': params}, prompt, decoder_tokens)


def _forward(config, params, encoder_tokens, targets, encoder_mask):
  decoder_tokens = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  prompt = prompts.Prompts(encoder_tokens, encoder_mask)
  return np.asarray(_logits(config, params, prompt, decoder_tokens))


def _token_logprobs(logits, targets):
  logits = logits.astype(np.float64)
  highest = logits.max(-1, keepdims=True)
  logprobs = logits - highest
  logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
  return np.take_along_axis(logprobs, targets[..., None], -1)[..., 0]


def _assert_as_golden(logits, targets, golden, rows=slice(None)):
  """Compares rows, which may be padded further than the golden arrays."""
  mask = golden['target_mask'][rows]
  length = mask.shape[1]
  positions = golden['logit_positions'][rows]
  np.testing.assert_allclose(
    np.take_along_axis(logits, positions[..., None], 1),
    golden['logits'][rows],
    atol=TOLERANCE,
    rtol=0,
  )
  token_logprobs = _token_logprobs(logits, targets)[:, :length]
  token_logprobs = np.where(mask, token_logprobs, 0.0)
  np.testing.assert_allclose(
    token_logprobs, golden['token_logprobs'][rows], atol=TOLERANCE, rtol=0
  )
  np.testing.assert_allclose(
    token_logprobs.sum(1), golden['logprobs'][rows], atol=TOLERANCE, rtol=0
  )


@pytest.mark.parametrize('extra_padding', [0, 9])
@every_model
def test_logits_and_logprobs_of_a_ragged_batch(name, extra_padding):
  golden = _golden(name)
  encoder_tokens, targets, encoder_mask = (
    np.pad(golden[key], ((0, 0), (0, extra_padding)))
    for key in ('encoder_tokens', 'target_tokens', 'encoder_mask')
  )
  # What stands at masked positions of the prompt must not matter.
  encoder_tokens = np.where(encoder_mask, encoder_tokens, 77)
  logits = _forward(*_load(name), encoder_tokens, targets, encoder_mask)
  _assert_as_golden(logits, targets, golden)


@every_model
def test_one_text_alone_and_unpadded(name):
  golden = _golden(name)
  row = 3
  prompt_length = golden['encoder_mask'][row].sum()
  response_length = golden['target_mask'][row].sum()
  rows = slice(row, row + 1)
  targets = golden['target_tokens'][rows, :response_length]
  logits = _forward(
    *_load(name),
    golden['encoder_tokens'][rows, :prompt_length],
    targets,
    golden['encoder_mask'][rows, :prompt_length],
  )
  golden['target_mask'] = golden['target_mask'][:, :response_length]
  golden['token_logprobs'] = golden['token_logprobs'][:, :response_length]
  _assert_as_golden(logits, targets, golden, rows)


@every_model
def test_greedy_decoding(name):
  golden = _golden(name)
  assert golden['greedy_margin'] > 1e-3
  config, params = _load(name)
  batch, length = golden['greedy_tokens'].shape
  tokens = np.zeros((batch, length), np.int32)
  ended = np.zeros(batch, bool)
  for position in range(length):
    logits = _forward(
      config, params, golden['encoder_tokens'], tokens, golden['encoder_mask']
    )
    tokens[:, position] = np.where(ended, 0, logits[:, position].argmax(-1))
    ended |= tokens[:, position] == 1
  np.testing.assert_array_equal(tokens, golden['greedy_tokens'])
  assert 0 < ended.sum() < batch


def _swappable(path):
  """Yields paths that are easily mistaken for `path`."""
  for old, new in (
    ('/query/', '/key/'),
    ('/value/', '/query/'),
    ('wi_0', 'wi_1'),
    ('layers_0/', 'layers_1/'),
    ('decoder/self_', 'decoder/encoder_decoder_'),
    ('pre_self_attention', 'pre_cross_attention'),
    ('pre_mlp', 'pre_attention'),
    ('encoder/relpos_bias', 'decoder/relpos_bias'),
    ('encoder/layers_1/relpos_bias', 'decoder/layers_1/relpos_bias'),
    ('encoder/encoder_norm', 'decoder/decoder_norm'),
  ):
    if old in path:
      yield path.replace(old, new)


@every_model
def test_a_mapping_with_two_parameters_swapped_would_be_noticed(name):
  golden = _golden(name)
  config, params = _load(name)
  flat = tree_paths.flatten(params)
  pairs = [
    (path, other)
    for path in flat
    for other in _swappable(path)
    if other in flat and flat[other].shape == flat[path].shape
  ]
  assert len(pairs) > 20
  arguments = (
    golden['encoder_tokens'][:5, :40],
    golden['target_tokens'][:5, :40],
    golden['encoder_mask'][:5, :40],
  )
  right = _forward(config, params, *arguments)
  for path, other in pairs:
    swapped = tree_paths.unflatten(
      flat | {path: flat[other], other: flat[path]}
    )
    wrong = _forward(config, swapped, *arguments)
    assert np.abs(wrong - right).max() > 10 * TOLERANCE, (path, other)


def test_golden_tokens_are_the_bytes_of_the_texts():
  lines = (GOLDEN / 'hf_t5_texts.jsonl').read_text('utf-8').splitlines()
  texts = [json.loads(line) for line in lines]
  for name in MODELS:
    golden = _golden(name)
    for key, tokens, mask in (
      ('prompt', 'encoder_tokens', 'encoder_mask'),
      ('response', 'target_tokens', 'target_mask'),
    ):
      assert len(texts) == len(golden[tokens])
      for text, row, valid in zip(
        texts, golden[tokens], golden[mask], strict=True
      ):
        expected = [byte + 3 for byte in text[key].encode()] + [1]
        assert row[valid].tolist() == expected
        assert not row[~valid].any()
    # Far enough for every relative position bucket, in both stacks.
    assert golden['encoder_mask'].shape[1] > 128
    assert golden['target_mask'].shape[1] > 128


def test_the_directories_are_of_every_kind():
  configs = {name: _load(name)[0] for name in MODELS}
  kinds = {
    name: (
      config.mlp_activations,
      config.logits_via_embedding,
      config.relpos_bias_per_layer,
    )
    for name, config in configs.items()
  }
  assert kinds == {
    'hf_t5_v1_0': (('relu',), True, False),
    'hf_t5_v1_1': (('gelu', 'linear'), False, False),
    'hf_t5_gated_tied': (('gelu', 'linear'), True, False),
    'hf_t5_mt5': (('gelu', 'linear'), False, False),
    'hf_t5_umt5': (('gelu', 'linear'), False, True),
  }
  sharded = [
    name
    for name in MODELS
    if (GOLDEN / name / 'model.safetensors.index.json').exists()
  ]
  assert sharded == ['hf_t5_v1_1']
