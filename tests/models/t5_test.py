import ast
import dataclasses
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5_reference
import tiny_models

from perlhf_jax.core import masking
from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config
from perlhf_jax.objectives import losses
from perlhf_jax.training import layer_layout

GIN = pathlib.Path(__file__).parents[2] / 'gin' / 'models'
CONFIG = tiny_models.CONFIG
V1_0 = dataclasses.replace(
  CONFIG, mlp_activations=('relu',), logits_via_embedding=True
)
UMT5 = dataclasses.replace(CONFIG, relpos_bias_per_layer=True)


def config_of_gin_file(name):
  """Reads T5Config's block; gin itself would import the data floor."""
  fields = {}
  for file in 'bases/t5_1_1.gin', f'{name}.gin':  # The latter includes it.
    block = (GIN / file).read_text().split('t5_config.T5Config:')[1]
    fields |= re.findall(r'^  (\w+) = (.+)$', block, re.MULTILINE)
  fields.pop('dropout_rate')
  values = {name: ast.literal_eval(v) for name, v in fields.items()}
  return t5_config.T5Config(**values)


def expected_t5x_small():
  """T5X's tree of t5_1_1 small: path to (shape, logical axes)."""
  width, joined, mlp, vocab, heads = 512, 6 * 64, 1024, 32128, 6
  tree = {
    'token_embedder/embedding': ((vocab, width), ('vocab', 'embed')),
    'encoder/encoder_norm/scale': ((width,), ('embed',)),
    'decoder/decoder_norm/scale': ((width,), ('embed',)),
    'decoder/logits_dense/kernel': ((width, vocab), ('embed', 'vocab')),
  }
  attentions = {
    'encoder': [('attention', 'pre_attention_layer_norm')],
    'decoder': [
      ('self_attention', 'pre_self_attention_layer_norm'),
      ('encoder_decoder_attention', 'pre_cross_attention_layer_norm'),
    ],
  }
  for stack in ('encoder', 'decoder'):
    tree[f'{stack}/relpos_bias/rel_embedding'] = (
      (heads, 32),
      ('heads', 'relpos_buckets'),
    )
    for index in range(8):
      layer = f'{stack}/layers_{index}'
      for attention, norm in attentions[stack]:
        tree[f'{layer}/{norm}/scale'] = ((width,), ('embed',))
        for name in ('query', 'key', 'value'):
          tree[f'{layer}/{attention}/{name}/kernel'] = (
            (width, joined),
            ('embed', 'joined_kv'),
          )
        tree[f'{layer}/{attention}/out/kernel'] = (
          (joined, width),
          ('joined_kv', 'embed'),
        )
      tree[f'{layer}/pre_mlp_layer_norm/scale'] = ((width,), ('embed',))
      for name in ('wi_0', 'wi_1'):
        tree[f'{layer}/mlp/{name}/kernel'] = ((width, mlp), ('embed', 'mlp'))
      tree[f'{layer}/mlp/wo/kernel'] = ((mlp, width), ('mlp', 'embed'))
  return tree


def test_small_has_t5x_names_shapes_and_axes():
  config = config_of_gin_file('t5_1_1_small')
  params = tiny_models.abstract_variables(config)['params']
  shapes = tree_paths.flatten(nn.meta.unbox(params))
  axes = tree_paths.flatten(nn.get_partition_spec(params))
  actual = {p: (shapes[p].shape, tuple(axes[p])) for p in shapes}
  assert actual == expected_t5x_small()
  assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('small', 76_961_152),
    ('base', 247_577_856),
    ('large', 783_150_080),
    ('xl', 2_849_757_184),
    ('xxl', 11_135_332_352),
  ],
)
def test_parameter_counts(name, count):
  config = config_of_gin_file(f't5_1_1_{name}')
  # Stacked layers count the same and trace faster.
  config = dataclasses.replace(config, scan_layers=True)
  params = tiny_models.abstract_variables(config)['params']
  assert tree_paths.count_parameters(params) == count


def test_v1_0_names():
  paths = tree_paths.flatten(tiny_models.params(V1_0))
  assert 'encoder/layers_0/mlp/wi/kernel' in paths
  assert 'encoder/layers_0/mlp/wi_0/kernel' not in paths
  assert 'decoder/logits_dense/kernel' not in paths


def test_umt5_has_a_position_bias_in_each_layer():
  paths = tree_paths.flatten(tiny_models.params(UMT5))
  biases = {p for p in paths if 'relpos_bias' in p}
  assert biases == {
    f'{stack}/layers_{index}/relpos_bias/rel_embedding'
    for stack in ('encoder', 'decoder')
    for index in (0, 1)
  }


@pytest.mark.parametrize('scan_layers', [False, True])
def test_each_stack_has_its_own_depth(scan_layers):
  config = dataclasses.replace(
    CONFIG, num_encoder_layers=1, num_decoder_layers=3, scan_layers=scan_layers
  )
  params = nn.meta.unbox(tiny_models.abstract_variables(config)['params'])
  for stack, depth in ('encoder', 1), ('decoder', 3):
    layers = {n: x for n, x in params[stack].items() if n.startswith('layers')}
    if scan_layers:
      (leaves,) = map(jax.tree.leaves, layers.values())
      assert {leaf.shape[0] for leaf in leaves} == {depth}
    else:
      assert layers.keys() == {f'layers_{index}' for index in range(depth)}


def test_scanned_axes_have_layers_in_front():
  config = dataclasses.replace(CONFIG, scan_layers=True)
  params = tiny_models.abstract_variables(config)['params']
  axes = tree_paths.flatten(nn.get_partition_spec(params))
  shapes = tree_paths.flatten(nn.meta.unbox(params))
  path = 'decoder/layers/self_attention/query/kernel'
  assert tuple(axes[path]) == ('layers', 'embed', 'joined_kv')
  assert shapes[path].shape == (2, 16, 24)
  assert not any('layers_' in p for p in shapes)


def test_dense_module_paths():
  paths = encoder_decoder.dense_module_paths(CONFIG)
  # 4 projections an attention and 3 kernels an MLP; 1 output layer.
  assert len(paths) == 2 * (4 + 3) + 2 * (8 + 3) + 1
  assert 'decoder/logits_dense' in paths
  assert 'encoder/layers_1/mlp/wi_0' in paths


@pytest.fixture(scope='module')
def tokens():
  response, _ = tiny_models.ragged_tokens(1, 3, 7)
  prompts = tiny_models.prompts(0, 3, 9)
  return prompts, np.asarray(masking.shift_right(response))


@pytest.fixture(scope='module')
def forward():
  return jax.jit(
    lambda params, *inputs: t5.T5(CONFIG).apply({'params': params}, *inputs)
  )


@pytest.mark.parametrize(
  'config', [CONFIG, V1_0, UMT5], ids=['v1_1', 'v1_0', 'umt5']
)
def test_logits_match_numpy_reference(config, tokens):
  prompts, response = tokens
  params = tiny_models.params(config)
  logits = jax.jit(t5.T5(config).apply)({'params': params}, *tokens)
  expected = t5_reference.logits(
    jax.tree.map(np.float64, params),
    prompts.tokens,
    prompts.mask,
    response,
    config,
  )
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=2e-5)


def test_mask_defaults_to_nonzero_tokens(forward, tokens):
  prompts, response = tokens
  params = tiny_models.params()
  assert not prompts.mask.all()
  np.testing.assert_array_equal(
    forward(params, prompts_lib.of_tokens(prompts.tokens), response),
    forward(params, prompts, response),
  )


def test_logits_do_not_depend_on_padding_content(forward, tokens):
  prompts, response = tokens
  junk = tiny_models.with_junk(prompts, 17)
  params = tiny_models.params()
  assert not np.array_equal(junk.tokens, prompts.tokens)
  np.testing.assert_array_equal(
    forward(params, prompts, response), forward(params, junk, response)
  )


def test_logits_do_not_depend_on_padded_lengths(forward, tokens):
  prompts, response = tokens
  params = tiny_models.params()
  padded = forward(
    params,
    tiny_models.padded(prompts, 4, junk=9),
    np.pad(response, ((0, 0), (0, 3)), constant_values=9),
  )
  np.testing.assert_allclose(
    padded[:, : response.shape[1]],
    forward(params, prompts, response),
    atol=1e-5,
  )


def test_rows_are_independent(forward, tokens):
  params = tiny_models.params()
  whole = forward(params, *tokens)
  order = np.array([2, 0, 1])
  np.testing.assert_allclose(
    forward(params, *tiny_models.rows(tokens, order)),
    whole[order],
    atol=1e-5,
  )
  single = forward(params, *tiny_models.rows(tokens, slice(1, 2)))
  np.testing.assert_allclose(single[0], whole[1], atol=1e-5)


def test_decoder_is_causal_and_not_blind(forward, tokens):
  prompts, response = tokens
  params = tiny_models.params()
  before = np.asarray(forward(params, prompts, response))
  changed = response.copy()
  changed[:, 4] = (changed[:, 4] + 1) % CONFIG.vocab_size
  after = np.asarray(forward(params, prompts, changed))
  np.testing.assert_array_equal(after[:, :4], before[:, :4])
  assert (np.abs(after[:, 4:] - before[:, 4:]).max(axis=-1) > 1e-4).all()


def test_responses_of_a_prompt_equal_a_tiled_prompt(forward, tokens):
  prompts, _ = tokens
  response, _ = tiny_models.ragged_tokens(5, 3 * 2, 7)
  params = tiny_models.params()
  tiled = jax.tree.map(lambda x: x.repeat(2, axis=0), prompts)
  np.testing.assert_allclose(
    forward(params, prompts, response),
    forward(params, tiled, response),
    atol=1e-5,
  )


def _gradient_function(config):
  def loss(params, prompts, response, rng):
    logits = t5.T5(config).apply(
      {'params': params},
      prompts,
      response,
      deterministic=rng is None,
      rngs=None if rng is None else {'dropout': rng},
    )
    return jnp.sum(jnp.tanh(logits)), logits

  return jax.jit(jax.grad(loss, has_aux=True))


@pytest.fixture(scope='module')
def unrolled_gradients(tokens):
  return _gradient_function(CONFIG)(tiny_models.params(), *tokens, None)


@pytest.mark.parametrize('remat_policy', ['none', 'minimal', 'full'])
def test_scanned_layers_equal_unrolled_ones(
  remat_policy, tokens, unrolled_gradients
):
  config = dataclasses.replace(
    CONFIG, scan_layers=True, remat_policy=remat_policy
  )
  stacked = layer_layout.stack_layers(tiny_models.params())
  gradients, logits = _gradient_function(config)(stacked, *tokens, None)
  gradients = layer_layout.unstack_layers(gradients)
  expected_gradients, expected_logits = unrolled_gradients
  np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4),
    gradients,
    expected_gradients,
  )


def test_scanned_umt5_equals_unrolled(tokens):
  params = tiny_models.params(UMT5)
  scanned = dataclasses.replace(UMT5, scan_layers=True)
  stacked = layer_layout.stack_layers(params)
  np.testing.assert_allclose(
    jax.jit(t5.T5(scanned).apply)({'params': stacked}, *tokens),
    jax.jit(t5.T5(UMT5).apply)({'params': params}, *tokens),
    atol=1e-5,
  )


@pytest.mark.parametrize('scan_layers', [False, True])
def test_remat_draws_the_same_dropout_again(scan_layers, tokens):
  config = dataclasses.replace(
    CONFIG, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.3
  )
  params = layer_layout.to_layout(tiny_models.params(config), scan_layers)
  config = dataclasses.replace(config, scan_layers=scan_layers)
  rng = jax.random.key(3)
  gradients, logits = _gradient_function(config)(params, *tokens, rng)
  config = dataclasses.replace(config, remat_policy='full')
  remat_gradients, remat_logits = _gradient_function(config)(
    params, *tokens, rng
  )
  np.testing.assert_allclose(remat_logits, logits, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4),
    remat_gradients,
    gradients,
  )


def test_dropout_needs_an_rng_and_changes_logits(tokens, forward):
  config = dataclasses.replace(CONFIG, dropout_rate=0.3)
  params = tiny_models.params()
  apply = jax.jit(
    lambda rng: t5.T5(config).apply(
      {'params': params},
      *tokens,
      deterministic=False,
      rngs={'dropout': rng},
    )
  )
  once, twice = apply(jax.random.key(0)), apply(jax.random.key(1))
  assert np.abs(once - twice).max() > 1e-2
  np.testing.assert_array_equal(once, apply(jax.random.key(0)))
  # Deterministic is the default, whatever the rate.
  np.testing.assert_array_equal(
    jax.jit(t5.T5(config).apply)({'params': params}, *tokens),
    forward(params, *tokens),
  )


@pytest.mark.parametrize('tied', [False, True])
def test_bfloat16_gives_float32_logits_close_by(tied, tokens):
  config = dataclasses.replace(CONFIG, logits_via_embedding=tied)
  params = tiny_models.params(config)
  exact = jax.jit(t5.T5(config).apply)({'params': params}, *tokens)
  config = dataclasses.replace(config, dtype='bfloat16')
  rough = jax.jit(t5.T5(config).apply)({'params': params}, *tokens)
  assert rough.dtype == jnp.float32
  # Not a rounding of float32 results: something was computed in bfloat16.
  assert np.abs(rough - exact).max() > 1e-4
  # Typical errors of a few of bfloat16's steps, 2**-8, after some 40 roundings.
  error = np.sqrt(np.mean((rough - exact) ** 2)) / np.std(exact)
  assert error < 8 * 2.0**-8
  # The last product is accumulated, and given, in float32.
  assert not np.array_equal(rough, rough.astype(jnp.bfloat16))
  encoded = jax.eval_shape(
    lambda: t5.T5(config).apply({'params': params}, tokens[0], method='encode')
  )
  assert encoded.states.dtype == jnp.bfloat16


# Of fixed seeds. A change here is a change of every model that was trained.
GOLDEN_TOKENS = 18.0
GOLDEN_LOSS = 76.877884


def test_golden_loss(tokens, forward):
  targets, weights = tiny_models.ragged_tokens(1, 3, 7)
  logits = forward(tiny_models.params(), *tokens)
  loss = losses.weighted_sums(
    losses.token_losses(logits, targets, z_loss=1e-4),
    weights.astype(np.float32),
  )
  assert float(loss.weight_sum) == GOLDEN_TOKENS
  np.testing.assert_allclose(loss.loss_sum, GOLDEN_LOSS, rtol=1e-5)


def test_initial_scales():
  config = dataclasses.replace(
    CONFIG,
    emb_dim=128,
    head_dim=32,
    num_heads=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  model = t5.T5(config)
  init = jax.jit(
    lambda rng: nn.meta.unbox(encoder_decoder.init_variables(model, rng))
  )
  flat = tree_paths.flatten(init(jax.random.key(1))['params'])

  def check(path, std):
    np.testing.assert_allclose(np.std(flat[path]), std, rtol=0.05)

  layer = 'encoder/layers_0'
  check('token_embedder/embedding', 1.0)
  # T5 divides no attention logits: the query's scale does it.
  check(f'{layer}/attention/query/kernel', 1 / np.sqrt(128 * 32))
  check(f'{layer}/attention/key/kernel', 1 / np.sqrt(128))
  check(f'{layer}/attention/out/kernel', 1 / np.sqrt(8 * 32))
  check(f'{layer}/mlp/wo/kernel', 1 / np.sqrt(36))
  assert (flat[f'{layer}/pre_mlp_layer_norm/scale'] == 1).all()
