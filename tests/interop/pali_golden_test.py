"""PaLI on Hugging Face weights against SigLIP and T5 of transformers.

The arrays and directories are made by tests/golden/make_hf_pali_golden.py.
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.interop import siglip
from perlhf_jax.models import pali
from perlhf_jax.models import pali_config
from perlhf_jax.models import prompts as prompts_lib

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
SIGLIP = GOLDEN / 'hf_pali' / 'siglip'
T5 = GOLDEN / 'hf_pali' / 't5'
TOLERANCE = 1e-4
IMAGE_TOKENS = 16

# Rows with one image or none, and with two, one or none.
either = pytest.mark.parametrize('variant', ['one', 'two'])


@functools.cache
def _arrays():
  with np.load(GOLDEN / 'hf_pali.npz') as arrays:
    return dict(arrays)


def _golden(variant):
  return {
    key.removeprefix(f'{variant}/'): array
    for key, array in _arrays().items()
    if key.startswith(f'{variant}/')
  }


@functools.cache
def _load():
  t5, vit = hf.load_config(T5), siglip.load_config(SIGLIP)
  fields = {f.name: getattr(t5, f.name) for f in dataclasses.fields(t5)}
  params = hf.load_params(T5, t5)
  params['vit'] = siglip.load_params(SIGLIP, vit)
  params['image_projection'] = {
    'kernel': _arrays()['projection_weight'].T,
    'bias': _arrays()['projection_bias'],
  }
  return pali_config.PaliConfig(**fields, vit=vit), params


def _prompts(golden, absent=0):
  """Makes the prompts; `absent` is what the pixels of no image are."""
  index = golden['image_index']
  images = _arrays()['pictures'][index]
  present = index >= 0
  return prompts_lib.Prompts(
    tokens=golden['tokens'],
    mask=golden['tokens'] != 0,
    images=np.where(present[..., None, None, None], images, absent).astype(
      np.uint8
    ),
    image_mask=present,
  )


@functools.partial(jax.jit, static_argnames='config')
def _run(config, params, prompts, decoder_input_tokens):
  model = pali.Pali(config)
  encoded = model.apply({'params': params}, prompts, method='encode')
  logits = model.apply({'params': params}, prompts, decoder_input_tokens)
  return encoded, logits


def _forward(prompts, decoder_input_tokens):
  config, params = _load()
  encoded, logits = _run(config, params, prompts, decoder_input_tokens)
  return np.asarray(encoded.states), np.asarray(encoded.mask), logits


def _assert_close(actual, expected, mask):
  assert mask.any()
  difference = np.abs(np.asarray(actual) - expected)[mask].max()
  assert difference < TOLERANCE


def _assert_as_golden(states, mask, logits, golden, rows=slice(None)):
  expected_mask = np.concatenate(
    [
      np.repeat(golden['image_index'][rows] >= 0, IMAGE_TOKENS, axis=1),
      golden['tokens'][rows] != 0,
    ],
    axis=1,
  )
  np.testing.assert_array_equal(mask, expected_mask)
  _assert_close(states, golden['encoder_states'][rows], mask)
  _assert_close(logits, golden['logits'][rows], golden['target_mask'][rows])


def test_the_tokens_of_images_before_they_are_projected():
  golden = _golden('one')
  config, params = _load()
  prompts = _prompts(golden)
  present = golden['image_index'][:, 0] >= 0
  states = pali.Pali(config).apply(
    {'params': params},
    prompts.images[:, 0],
    method=lambda model, images: model.vit(images),
  )
  _assert_close(states, golden['image_states'][:, 0], present)
  assert golden['image_states'].shape[2:] == (IMAGE_TOKENS, config.vit.width)


@either
def test_states_and_logits_of_a_ragged_batch(variant):
  golden = _golden(variant)
  outputs = _forward(_prompts(golden), golden['decoder_input_tokens'])
  _assert_as_golden(*outputs, golden)


@either
def test_each_row_alone(variant):
  golden = _golden(variant)
  for row in range(len(golden['tokens'])):
    rows = slice(row, row + 1)
    prompts = jax.tree.map(lambda x, rows=rows: x[rows], _prompts(golden))
    outputs = _forward(prompts, golden['decoder_input_tokens'][rows])
    _assert_as_golden(*outputs, golden, rows)


@pytest.mark.parametrize(('variant', 'row'), [('one', 3), ('two', 2)])
def test_a_row_alone_and_unpadded(variant, row):
  golden = _golden(variant)
  text_length = (golden['tokens'][row] != 0).sum()
  response_length = golden['target_mask'][row].sum()
  assert text_length < golden['tokens'].shape[1]
  assert response_length < golden['target_mask'].shape[1]
  for name in ('decoder_input_tokens', 'target_mask', 'logits'):
    golden[name] = golden[name][:, :response_length]
  golden['tokens'] = golden['tokens'][:, :text_length]
  length = IMAGE_TOKENS * golden['image_index'].shape[1] + text_length
  golden['encoder_states'] = golden['encoder_states'][:, :length]
  rows = slice(row, row + 1)
  prompts = jax.tree.map(lambda x: x[rows], _prompts(golden))
  outputs = _forward(prompts, golden['decoder_input_tokens'][rows])
  _assert_as_golden(*outputs, golden, rows)


@either
def test_pixels_and_text_that_are_masked_change_nothing(variant):
  golden = _golden(variant)
  prompts = _prompts(golden)
  noise = np.random.default_rng(0).integers(0, 256, prompts.images.shape)
  noisy = _prompts(golden, absent=noise)
  noisy = noisy.replace(tokens=np.where(noisy.mask, noisy.tokens, 77))
  assert (noisy.images != prompts.images).any()
  states, mask, logits = _forward(prompts, golden['decoder_input_tokens'])
  noisy_states, _, noisy_logits = _forward(
    noisy, golden['decoder_input_tokens']
  )
  np.testing.assert_array_equal(noisy_states[mask], states[mask])
  np.testing.assert_array_equal(noisy_logits, logits)


def test_pixels_of_images_that_are_there_change_the_logits():
  golden = _golden('two')
  present = golden['image_index'] >= 0
  decoder_inputs = golden['decoder_input_tokens']
  _, _, logits = _forward(_prompts(golden), decoder_inputs)
  for image in range(2):
    prompts = _prompts(golden)
    prompts.images[:, image] = 255 - prompts.images[:, image]
    _, _, others = _forward(prompts, decoder_inputs)
    change = np.abs(others - logits).max((1, 2))
    assert (change[present[:, image]] > 100 * TOLERANCE).all()
    assert (change[~present[:, image]] == 0).all()


def test_the_order_of_images_matters():
  golden = _golden('two')
  # The first two rows differ in nothing else.
  assert (golden['image_index'][0] == golden['image_index'][1][::-1]).all()
  for name in ('tokens', 'decoder_input_tokens'):
    np.testing.assert_array_equal(*golden[name][:2])
  first, second = golden['logits'][:2]
  assert np.abs(first - second).max() > 100 * TOLERANCE


@either
def test_a_prompt_without_images_is_one_of_the_t5(variant):
  golden = _golden(variant)
  (row,) = np.flatnonzero((golden['image_index'] < 0).all(1))
  prompts = jax.tree.map(lambda x: x[row : row + 1], _prompts(golden))
  decoder_inputs = golden['decoder_input_tokens'][row : row + 1]
  _, _, logits = _forward(prompts, decoder_inputs)
  _, mask, text_logits = _forward(
    prompts.replace(images=None, image_mask=None), decoder_inputs
  )
  assert mask.shape == prompts.tokens.shape
  np.testing.assert_allclose(text_logits, logits, atol=TOLERANCE, rtol=0)


def _swappable(path):
  """Yields paths that are easily mistaken for `path`."""
  for old, new in (
    ('/query/', '/key/'),
    ('/value/', '/query/'),
    ('/value/', '/out/'),
    ('LayerNorm_0', 'LayerNorm_1'),
    ('encoderblock_0', 'encoderblock_1'),
    ('Transformer/encoder_norm', 'Transformer/encoderblock_1/LayerNorm_1'),
    ('embedding/bias', 'Transformer/encoder_norm/bias'),
  ):
    if path.startswith('vit/') and old in path:
      yield path.replace(old, new)


def test_a_mapping_with_two_parameters_swapped_would_be_noticed():
  golden = _golden('one')
  config, params = _load()
  flat = tree_paths.flatten(params)
  pairs = [
    (path, other)
    for path in flat
    for other in _swappable(path)
    if other in flat
    and flat[other].shape == flat[path].shape
    # A softmax takes no notice of what is added to the scores of all keys.
    and not (path.endswith('key/bias') and other.endswith('key/bias'))
  ]
  assert len(pairs) > 30
  arguments = _prompts(golden), golden['decoder_input_tokens']
  _, right = _run(config, params, *arguments)
  for path, other in pairs:
    swapped = tree_paths.unflatten(
      flat | {path: flat[other], other: flat[path]}
    )
    _, wrong = _run(config, swapped, *arguments)
    assert np.abs(wrong - right).max() > 5 * TOLERANCE, (path, other)


def test_attention_in_blocks_gives_the_same():
  golden = _golden('two')
  config, params = _load()
  encoded, logits = _run(
    dataclasses.replace(config, attention_block=7),
    params,
    _prompts(golden),
    golden['decoder_input_tokens'],
  )
  _assert_as_golden(
    np.asarray(encoded.states), np.asarray(encoded.mask), logits, golden
  )


def test_the_golden_arrays_hold_what_they_should():
  for variant in ('one', 'two'):
    golden = _golden(variant)
    present = golden['image_index'] >= 0
    assert len(present) >= 4 and not present.all() and present.any()
    lengths = (golden['tokens'] != 0).sum(1)
    assert len(set(lengths)) > 2
    assert golden['decoder_input_tokens'][:, 0].tolist() == [0] * len(present)
  assert {0, 1, 2} == set(present.sum(1))
  assert (present.sum(0) < len(present)).all()
