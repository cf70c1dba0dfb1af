import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_pali
import vit_reference

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora
from perlhf_jax.models import merge
from perlhf_jax.models import pali_config
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.models import tuned_params
from perlhf_jax.models import vit
from perlhf_jax.models import vit_config
from perlhf_jax.training import layer_layout

CONFIG = tiny_pali.CONFIG
TOKENS = tiny_pali.VIT.num_tokens


@pytest.fixture(scope='module')
def params():
  return tiny_models.params(CONFIG)


def encode(params, prompts, config=CONFIG):
  model = encoder_decoder.make_model(config)
  return jax.jit(
    lambda params, prompts: model.apply(
      {'params': params}, prompts, method='encode'
    )
  )(params, prompts)


def test_vit_is_the_slow_reference(params):
  images = tiny_pali.prompts(0, 3, 5).images[:, 0]
  tokens = vit.ViT(CONFIG).apply({'params': params['vit']}, images)
  for image, actual in zip(images, tokens, strict=True):
    expected = vit_reference.tokens(
      params['vit'], np.asarray(image), tiny_pali.VIT
    )
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_image_tokens_stand_before_the_text(params):
  prompts = tiny_pali.prompts(1, 2, 5, num_images=2)
  model = encoder_decoder.make_model(CONFIG)
  embedded, mask = model.apply(
    {'params': params}, prompts, deterministic=True, method='embed_prompts'
  )
  assert embedded.shape == (2, 2 * TOKENS + 5, CONFIG.emb_dim)
  kernel, bias = (params['image_projection'][n] for n in ('kernel', 'bias'))
  for row in range(2):
    for number in range(2):
      tokens = vit_reference.tokens(
        params['vit'], np.asarray(prompts.images[row, number]), tiny_pali.VIT
      )
      np.testing.assert_allclose(
        embedded[row, number * TOKENS : (number + 1) * TOKENS],
        tokens @ kernel + bias,
        atol=5e-5,
      )
  table = params['token_embedder']['embedding']
  np.testing.assert_array_equal(
    embedded[:, 2 * TOKENS :], table[prompts.tokens]
  )
  assert mask[:, : 2 * TOKENS].all()
  np.testing.assert_array_equal(mask[:, 2 * TOKENS :], prompts.mask)


def test_pixels_of_an_absent_image_change_nothing(params):
  prompts = tiny_pali.prompts(2, 3, 6, num_images=2)
  present = np.array([[True, False], [True, True], [False, False]])
  prompts = prompts.replace(image_mask=jnp.asarray(present))
  noise = tiny_pali.prompts(3, 3, 6, num_images=2).images
  other = prompts.replace(
    images=jnp.where(present[..., None, None, None], prompts.images, noise)
  )
  before, after = encode(params, prompts), encode(params, other)
  np.testing.assert_array_equal(before.mask, after.mask)
  kept = np.asarray(before.mask)
  np.testing.assert_array_equal(before.states[kept], after.states[kept])
  assert (before.states[~kept] != after.states[~kept]).any()


def test_present_pixels_change_every_state(params):
  prompts = tiny_pali.prompts(2, 2, 6)
  other = prompts.replace(images=prompts.images.at[0].add(100))
  before, after = encode(params, prompts), encode(params, other)
  real = np.asarray(before.mask[0])
  assert (before.states[0] != after.states[0]).any(axis=-1)[real].all()
  np.testing.assert_array_equal(before.states[1], after.states[1])


def test_a_prompt_without_images_is_that_of_the_t5(params):
  prompts = tiny_pali.prompts(4, 3, 6)
  text = tiny_models.prompts(4, 3, 6)
  backbone = {
    name: tree
    for name, tree in params.items()
    if name not in ('vit', 'image_projection')
  }
  expected = encode(backbone, text, tiny_models.CONFIG)
  np.testing.assert_array_equal(encode(params, text).states, expected.states)
  absent = encode(
    params, prompts.replace(image_mask=jnp.zeros_like(prompts.image_mask))
  )
  real = np.asarray(expected.mask)
  np.testing.assert_allclose(
    absent.states[:, TOKENS:][real], expected.states[real], atol=1e-5
  )


def test_t5_refuses_images():
  with pytest.raises(ValueError, match='reads no images'):
    encode(tiny_models.params(), tiny_pali.prompts(0, 1, 4), tiny_models.CONFIG)


def test_images_of_another_size_are_refused(params):
  prompts = tiny_pali.prompts(0, 1, 4)
  with pytest.raises(ValueError, match='6 pixels'):
    encode(params, prompts.replace(images=prompts.images[:, :, :4, :4]))


@pytest.mark.parametrize('remat', ['none', 'full', 'minimal'])
def test_scanned_layers_are_the_unrolled_ones(params, remat):
  prompts = tiny_pali.prompts(5, 2, 5)
  config = dataclasses.replace(CONFIG, scan_layers=True, remat_policy=remat)
  stacked = layer_layout.to_layout(params, scan_layers=True)
  assert 'encoderblock' in stacked['vit']['Transformer']
  shapes = nn.meta.unbox(tiny_models.abstract_variables(config)['params'])
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
  np.testing.assert_allclose(
    encode(stacked, prompts, config).states,
    encode(params, prompts).states,
    atol=1e-5,
  )
  unrolled = layer_layout.to_layout(stacked, scan_layers=False)
  jax.tree.map(np.testing.assert_array_equal, unrolled, dict(params))


def test_attention_in_blocks_is_the_same(params):
  prompts = tiny_pali.prompts(5, 2, 5)
  config = dataclasses.replace(CONFIG, attention_block=4)
  np.testing.assert_allclose(
    encode(params, prompts, config).states,
    encode(params, prompts).states,
    atol=1e-5,
  )


def test_bfloat16_is_near(params):
  prompts = tiny_pali.prompts(5, 2, 5)
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  exact, rough = encode(params, prompts), encode(params, prompts, config)
  assert rough.states.dtype == jnp.bfloat16
  real = np.asarray(exact.mask)
  difference = np.abs(
    np.asarray(exact.states)[real] - np.asarray(rough.states, np.float32)[real]
  )
  assert 0 < difference.mean() < 0.05


def test_default_adapters_are_on_the_attentions_of_the_t5():
  paths = encoder_decoder.dense_module_paths(CONFIG)
  assert 'vit/embedding' not in paths
  assert 'image_projection' in paths
  adapters = lora.resolve(lora.LoraConfig(), paths)
  t5_paths = encoder_decoder.dense_module_paths(tiny_models.CONFIG)
  assert adapters == lora.resolve(lora.LoraConfig(), t5_paths)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_adapters_on_the_vit_by_choice(scan_layers):
  config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
  targets = (
    *lora.ATTENTION_PROJECTIONS,
    r'vit/.*/MultiHeadDotProductAttention_0/(query|key|value|out)',
  )
  model, adapters = tiny_models.adapted(
    lora.LoraConfig(rank=2, target_modules=targets), config
  )
  flat = tree_paths.flatten(adapters)
  on_vit = [path for path in flat if path.startswith('vit/')]
  assert len(on_vit) == 2 * 4 * (1 if scan_layers else 2)
  params = tiny_models.params(config)
  merged, report = merge.merge_and_check(
    model, params, adapters, tolerance=1e-3
  )
  assert report.max_logit_difference < 1e-4
  before, after = (tree_paths.flatten(tree) for tree in (params, merged))
  changed = {p for p in before if (before[p] != after[p]).any()}
  assert changed == {
    path.removesuffix('lora/lora_a') + 'kernel'
    for path in flat
    if path.endswith('lora_a')
  }


@pytest.mark.parametrize('is_lora', [False, True])
@pytest.mark.parametrize('train_vit', [False, True])
@pytest.mark.parametrize('train_projection', [False, True])
def test_what_is_tuned(params, is_lora, train_vit, train_projection):
  config = dataclasses.replace(
    CONFIG, train_vit=train_vit, train_projection=train_projection
  )
  tuned, kept = tuned_params.split(params, config, lora=is_lora)
  assert tree_paths.overlay(kept, tuned).keys() == params.keys()
  expected = {'vit'} if train_vit else set()
  if train_projection:
    expected.add('image_projection')
  if not is_lora:
    expected |= {'token_embedder', 'encoder', 'decoder'}
  assert tuned.keys() == expected
  keeps_any = tuned_params.keeps_any(config, lora=is_lora)
  assert keeps_any == bool(kept)


def test_all_of_a_t5_is_tuned_or_nothing():
  params = tiny_models.params()
  for is_lora in (False, True):
    tuned, kept = tuned_params.split(params, tiny_models.CONFIG, lora=is_lora)
    assert (bool(tuned), bool(kept)) == (not is_lora, is_lora)
    assert tuned_params.keeps_any(tiny_models.CONFIG, lora=is_lora) == is_lora


def test_what_tuning_adds_to_the_pre_trained_weights(params):
  flat = tree_paths.flatten({'params': params})
  added = set(filter(tuned_params.is_added, flat))
  assert added == {
    'params/image_projection/kernel',
    'params/image_projection/bias',
  }
  assert not any(
    map(
      tuned_params.is_added,
      tree_paths.flatten({'params': tiny_models.params()}),
    )
  )
  lora = 'lora/encoder/layers_0/attention/query/lora/lora_a'
  assert all(map(tuned_params.is_added, (lora, 'heads/value/kernel')))


def test_scores_depend_on_the_image_and_not_on_the_batch(params):
  model = reward_model.RewardModel(encoder_decoder.make_model(CONFIG))
  head = {'kernel': np.ones((CONFIG.emb_dim, 1)), 'bias': np.zeros(1)}
  variables = {'params': params, 'heads': {'score': head}}
  prompts = tiny_pali.prompts(6, 3, 5)
  response, mask = tiny_models.ragged_tokens(7, 3, 4)
  scores = model.score(variables, prompts, response, mask)
  alone = [
    model.score(
      variables,
      tiny_models.rows(prompts, slice(row, row + 1)),
      response[row : row + 1],
      mask[row : row + 1],
    )[0]
    for row in range(3)
  ]
  np.testing.assert_allclose(scores, alone, atol=1e-5)
  other = prompts.replace(images=255 - prompts.images)
  assert (
    np.abs(model.score(variables, other, response, mask) - scores) > 1e-3
  ).all()


@pytest.mark.parametrize(
  ('shape', 'millions'),
  [
    ((768, 12, 3072, 12, 16), 85.8),
    ((1152, 27, 4304, 16, 14), 412.4),
    ((1664, 48, 8192, 16, 14), 1842.8),
    ((1792, 56, 15360, 16, 14), 3805.4),
  ],
)
def test_published_sizes(shape, millions):
  width, depth, mlp_dim, num_heads, patch_size = shape
  config = dataclasses.replace(
    CONFIG,
    scan_layers=True,
    vit=vit_config.ViTConfig(
      image_size=224,
      patch_size=patch_size,
      width=width,
      depth=depth,
      mlp_dim=mlp_dim,
      num_heads=num_heads,
    ),
  )
  params = tiny_models.abstract_variables(config)['params']
  count = tree_paths.count_parameters(nn.meta.unbox(params['vit']))
  assert round(count / 1e6, 1) == millions


def test_features_of_a_batch():
  prompts = tiny_pali.prompts(0, 2, 4)
  batch = {
    'prompt_tokens': prompts.tokens,
    'prompt_mask': prompts.mask,
    'images': prompts.images,
    'image_mask': prompts.image_mask,
    'labels': jnp.zeros(2),
  }
  jax.tree.map(
    np.testing.assert_array_equal, prompts_lib.of_batch(batch), prompts
  )
  text = {'encoder_input_tokens': np.array([[3, 1, 0]])}
  assert prompts_lib.of_batch(text).mask.tolist() == [[True, True, False]]


def test_configuration_survives_json():
  fields = dataclasses.asdict(CONFIG)
  assert pali_config.from_fields(fields) == CONFIG
  fields = dataclasses.asdict(tiny_models.CONFIG)
  assert pali_config.from_fields(fields) == tiny_models.CONFIG


def test_architecture_leaves_out_the_image_size():
  larger = CONFIG.with_image_size(8)
  assert larger.architecture() == CONFIG.architecture()
  assert larger.image_size == 8
  wider = dataclasses.replace(
    CONFIG, vit=dataclasses.replace(tiny_pali.VIT, width=40)
  )
  assert wider.architecture() != CONFIG.architecture()
  assert tiny_models.CONFIG.architecture() != CONFIG.architecture()
  assert tiny_models.CONFIG.image_size is None


@pytest.mark.parametrize(
  ('change', 'wanted'),
  [
    ({'image_size': 7}, 'image_size is 7, which .*patch_size, 2.*6 or 8'),
    ({'image_size': 1}, 'choose 2'),
    ({'num_heads': 3}, 'num_heads, 3'),
    ({'depth': 0}, 'depth is 0'),
    ({'width': -4}, 'width is -4'),
  ],
)
def test_impossible_vits(change, wanted):
  with pytest.raises(errors.ConfigError, match=wanted):
    dataclasses.replace(tiny_pali.VIT, **change)


def test_pali_needs_a_vit():
  with pytest.raises(errors.ConfigError, match=r'PaliConfig\.vit is None'):
    dataclasses.replace(CONFIG, vit=None)


def test_make_model_makes_what_the_configuration_says():
  assert type(encoder_decoder.make_model(tiny_models.CONFIG)) is t5.T5
  model = encoder_decoder.make_model(CONFIG)
  assert isinstance(model, t5.T5)
  assert type(model) is not t5.T5
