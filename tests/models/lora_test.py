import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import layers
from perlhf_jax.models import lora
from perlhf_jax.models import t5
from perlhf_jax.training import layer_layout

CONFIG = tiny_models.CONFIG
RANK = 3


def _inputs():
  response, _ = tiny_models.ragged_tokens(1, 3, 7)
  return tiny_models.prompts(0, 3, 9), response


def _dense(config, x, kernel, a, b, dtype=jnp.float32, **kwargs):
  adapters = lora.Adapters(config, frozenset(['']))
  dense = layers.Dense(
    kernel.shape[1], ('embed', 'mlp'), dtype=dtype, adapters=adapters
  )
  variables = {
    'params': {'kernel': kernel},
    'lora': {'lora': {'lora_a': a, 'lora_b': b}},
  }
  return dense.apply(variables, x, **kwargs)


@pytest.fixture
def matrices():
  rng = np.random.default_rng(0)
  shapes = [(4, 6), (6, 5), (6, RANK), (RANK, 5)]
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(
  ('config', 'scale'),
  [
    (lora.LoraConfig(rank=RANK), 1.0),
    (lora.LoraConfig(rank=RANK, alpha=12.0), 4.0),
    (lora.LoraConfig(rank=RANK, rs_lora=True), math.sqrt(3)),
    (lora.LoraConfig(rank=RANK, alpha=6.0, rs_lora=True), 6 / math.sqrt(3)),
  ],
)
def test_adapted_dense_matches_loops(config, scale, matrices):
  x, kernel, a, b = matrices
  y = _dense(config, x, kernel, a, b)
  for n, o in np.ndindex(4, 5):
    expected = sum(x[n, i] * kernel[i, o] for i in range(6))
    for r in range(RANK):
      inner = sum(x[n, i] * a[i, r] for i in range(6))
      expected += scale * inner * b[r, o]
    np.testing.assert_allclose(y[n, o], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [1e-4, 1e-3])
def test_small_updates_arrive_in_bfloat16(size):
  """Of updates of these sizes 6% and 54% arrive if `x·W` is rounded first."""
  rng = np.random.default_rng(0)
  shapes = [(4096, 512), (512, 512), (512, RANK), (RANK, 512)]
  x, kernel, a, b = (
    rng.normal(size=shape).astype(np.float32) for shape in shapes
  )
  x = np.float32(x.astype(jnp.bfloat16))
  b *= size * np.std(x @ kernel) / np.std(x @ a @ b)
  config = lora.LoraConfig(rank=RANK)
  merged = lora.merge_lora(
    {'dense': {'kernel': kernel}},
    {'dense': {'lora': {'lora_a': a, 'lora_b': b}}},
    config,
  )
  exact = x @ np.float64(merged['dense']['kernel']) - x @ np.float64(kernel)

  def share(dtype):
    y, base = (
      np.float64(_dense(config, x, kernel, a, b, dtype=dtype))
      for b in (b, np.zeros_like(b))
    )
    return np.sum((y - base) * exact) / np.sum(exact**2)

  assert share(jnp.float32) == pytest.approx(1, abs=0.01)
  assert share(jnp.bfloat16) == pytest.approx(1, abs=0.05)


def test_dropout_is_of_the_adapters_input_only(matrices):
  x, kernel, a, b = matrices
  config = lora.LoraConfig(rank=RANK, dropout_rate=0.5)

  def apply(seed, b=b):
    return _dense(
      config,
      x,
      kernel,
      a,
      b,
      deterministic=False,
      rngs={'dropout': jax.random.key(seed)},
    )

  off = _dense(config, x, kernel, a, b)
  plain = _dense(lora.LoraConfig(rank=RANK), x, kernel, a, b)
  np.testing.assert_array_equal(off, plain)
  assert np.abs(apply(0) - off).max() > 1e-2
  # The base product is not touched, and the update keeps its mean.
  # JAX's own product: NumPy's sums in another order on some machines.
  np.testing.assert_array_equal(apply(0, np.zeros_like(b)), jnp.dot(x, kernel))
  mean = np.mean([apply(seed) for seed in range(400)], axis=0)
  np.testing.assert_allclose(mean, off, atol=1.0)
  assert np.abs(mean - off).max() < np.abs(off - x @ kernel).max() / 3


def test_a_dense_layer_that_is_not_named_has_no_adapter(matrices):
  x, kernel, _, _ = matrices
  adapters = lora.Adapters(lora.LoraConfig(), frozenset(['elsewhere']))
  dense = layers.Dense(5, ('embed', 'mlp'), adapters=adapters)
  assert 'lora' not in dense.init(jax.random.key(0), x)
  np.testing.assert_array_equal(
    dense.apply({'params': {'kernel': kernel}}, x), jnp.dot(x, kernel)
  )


@pytest.fixture(scope='module')
def initialised():
  """Bare and adapted variables from one seed, by the real initialisers."""
  paths = encoder_decoder.dense_module_paths(CONFIG)
  adapters = lora.resolve(lora.LoraConfig(rank=RANK), paths)

  def init(adapters, seed):
    model = t5.T5(CONFIG, adapters)
    variables = encoder_decoder.init_variables(model, jax.random.key(seed))
    return nn.meta.unbox(variables)

  return jax.jit(lambda: (init(None, 0), init(adapters, 0)))(), adapters


def test_base_parameters_do_not_depend_on_adapters(initialised):
  (bare, adapted), _ = initialised
  assert set(bare) == {'params'}
  assert set(adapted) == {'params', 'lora'}
  jax.tree.map(np.testing.assert_array_equal, bare['params'], adapted['params'])


def test_adapters_start_random_times_zero(initialised):
  (_, adapted), _ = initialised
  flat = tree_paths.flatten(adapted['lora'])
  firsts = [v for p, v in flat.items() if p.endswith('lora_a')]
  seconds = [v for p, v in flat.items() if p.endswith('lora_b')]
  assert len(firsts) == len(seconds) == 2 * 4 + 2 * 8
  assert all((b == 0).all() for b in seconds)
  assert all(np.std(a) > 0.05 for a in firsts)
  assert not np.array_equal(firsts[0], firsts[1])


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
def test_zero_adapters_leave_logits_bit_identical(initialised, dtype):
  (bare, adapted), adapters = initialised
  config = dataclasses.replace(CONFIG, dtype=dtype)
  model = t5.T5(config, adapters)
  np.testing.assert_array_equal(
    jax.jit(t5.T5(config).apply)(bare, *_inputs()),
    jax.jit(model.apply)(adapted, *_inputs()),
  )


def test_adapters_change_logits():
  model, adapters = tiny_models.adapted(lora.LoraConfig(rank=RANK))
  params = tiny_models.params()
  base = jax.jit(t5.T5(CONFIG).apply)({'params': params}, *_inputs())
  adapted = jax.jit(model.apply)(
    {'params': params, 'lora': adapters}, *_inputs()
  )
  assert np.abs(base - adapted).max() > 0.1


def test_names_shapes_and_axes():
  paths = encoder_decoder.dense_module_paths(CONFIG)
  adapters = lora.resolve(lora.LoraConfig(rank=RANK), paths)
  boxed = tiny_models.abstract_variables(CONFIG, adapters)['lora']
  axes = tree_paths.flatten(nn.get_partition_spec(boxed))
  shapes = tree_paths.flatten(nn.meta.unbox(boxed))
  query = 'encoder/layers_0/attention/query/lora'
  assert shapes[f'{query}/lora_a'].shape == (16, RANK)
  assert shapes[f'{query}/lora_b'].shape == (RANK, 24)
  assert tuple(axes[f'{query}/lora_a']) == ('embed', 'lora_rank')
  assert tuple(axes[f'{query}/lora_b']) == ('lora_rank', 'joined_kv')
  out = 'decoder/layers_1/encoder_decoder_attention/out/lora'
  assert tuple(axes[f'{out}/lora_a']) == ('joined_kv', 'lora_rank')
  assert tuple(axes[f'{out}/lora_b']) == ('lora_rank', 'embed')
  # 24 adapters of rank 3, each between widths 16 and 24.
  assert tree_paths.count_parameters(boxed) == 24 * RANK * (16 + 24)


def test_scanned_adapters_have_layers_in_front():
  config = dataclasses.replace(CONFIG, scan_layers=True)
  adapters = lora.resolve(
    lora.LoraConfig(rank=RANK), encoder_decoder.dense_module_paths(config)
  )
  boxed = tiny_models.abstract_variables(config, adapters)['lora']
  axes = tree_paths.flatten(nn.get_partition_spec(boxed))
  shapes = tree_paths.flatten(nn.meta.unbox(boxed))
  path = 'decoder/layers/self_attention/query/lora/lora_a'
  assert shapes[path].shape == (2, 16, RANK)
  assert tuple(axes[path]) == ('layers', 'embed', 'lora_rank')
  assert tree_paths.count_parameters(boxed) == 24 * RANK * (16 + 24)


TARGETS = (
  r'.*attention/(query|out)',
  r'.*mlp/(wi_0|wi_1|wo)',
  'decoder/logits_dense',
)


def test_scanned_model_equals_unrolled_with_any_targets():
  unrolled, adapters = tiny_models.adapted(
    lora.LoraConfig(rank=RANK, alpha=6.0, target_modules=TARGETS)
  )
  assert 'decoder/logits_dense' in unrolled.adapters.module_paths
  assert 'lora' in adapters['decoder']['logits_dense']
  config = dataclasses.replace(CONFIG, scan_layers=True)
  scanned, _ = tiny_models.adapted(unrolled.adapters.config, config)
  params = tiny_models.params()
  np.testing.assert_allclose(
    jax.jit(unrolled.apply)({'params': params, 'lora': adapters}, *_inputs()),
    jax.jit(scanned.apply)(
      {
        'params': layer_layout.stack_layers(params),
        'lora': layer_layout.stack_layers(adapters),
      },
      *_inputs(),
    ),
    atol=2e-5,
  )


def test_scanned_initial_adapters_differ_between_layers():
  config = dataclasses.replace(CONFIG, scan_layers=True)
  adapters = lora.resolve(
    lora.LoraConfig(rank=RANK, target_modules=('encoder/.*/query',)),
    encoder_decoder.dense_module_paths(config),
  )
  model = t5.T5(config, adapters)
  init = jax.jit(
    lambda: nn.meta.unbox(
      encoder_decoder.init_variables(model, jax.random.key(0))
    )
  )
  variables = init()
  a = variables['lora']['encoder']['layers']['attention']['query']['lora'][
    'lora_a'
  ]
  assert np.abs(a[0] - a[1]).max() > 0.1
  kernel = variables['params']['encoder']['layers']['attention']['key'][
    'kernel'
  ]
  assert np.abs(kernel[0] - kernel[1]).max() > 0.1


def test_default_targets_are_all_attention_projections():
  paths = encoder_decoder.dense_module_paths(CONFIG)
  adapters = lora.resolve(lora.LoraConfig(), paths)
  assert adapters.module_paths == {p for p in paths if 'attention' in p}


def test_a_pattern_without_a_match_names_near_paths():
  config = lora.LoraConfig(
    target_modules=('encoder/layers_0/attention/querry',)
  )
  with pytest.raises(errors.ConfigError) as error:
    lora.resolve(config, encoder_decoder.dense_module_paths(CONFIG))
  message = str(error.value)
  assert 'LoraConfig.target_modules' in message
  assert "'encoder/layers_0/attention/querry' matches none" in message
  assert 'encoder/layers_0/attention/query' in message.split('example')[1]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rank': 0}, 'rank is 0; it must be a whole number from 1 to 65,536'),
    ({'alpha': -8}, 'alpha is -8; it must be a number above 0 or None'),
    (
      {'dropout_rate': 1.0},
      'dropout_rate is 1.0; it must be a number of at least 0 and below 1',
    ),
  ],
)
def test_bad_configurations(fields, message):
  with pytest.raises(errors.ConfigError, match=message):
    lora.LoraConfig(**fields)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_merge_is_the_matrix_sum_and_unmerge_its_inverse(scan_layers):
  config = lora.LoraConfig(rank=RANK, alpha=6.0, target_modules=TARGETS)
  model_config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
  model, adapters = tiny_models.adapted(config, model_config)
  params = tiny_models.params(model_config)
  merged = lora.merge_lora(params, adapters, config)
  flat, flat_merged = tree_paths.flatten(params), tree_paths.flatten(merged)
  flat_adapters = tree_paths.flatten(adapters)
  assert set(flat) == set(flat_merged)
  for path, kernel in flat.items():
    module = path.removesuffix('/kernel')
    expected = np.float64(kernel)
    if module in model.adapters.module_paths:
      a = np.float64(flat_adapters[f'{module}/lora/lora_a'])
      b = np.float64(flat_adapters[f'{module}/lora/lora_b'])
      expected = expected + 2.0 * np.einsum('...ir,...ro->...io', a, b)
      np.testing.assert_allclose(flat_merged[path], expected, atol=2e-6)
    else:
      np.testing.assert_array_equal(flat_merged[path], kernel)
  restored = tree_paths.flatten(lora.unmerge_lora(merged, adapters, config))
  for path, kernel in flat.items():
    np.testing.assert_allclose(restored[path], kernel, atol=1e-6)


def test_merge_keeps_the_kernels_dtype():
  config = lora.LoraConfig(rank=RANK)
  _, adapters = tiny_models.adapted(config)
  params = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.bfloat16), tiny_models.params()
  )
  merged = lora.merge_lora(params, adapters, config)
  assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {
    jnp.dtype('bfloat16')
  }


def test_describe():
  model, adapters = tiny_models.adapted(lora.LoraConfig(rank=2, alpha=1.0))
  line = lora.describe(model.adapters, adapters, tiny_models.params())
  base = tree_paths.count_parameters(tiny_models.params())
  added = 24 * 2 * 40
  assert line == (
    'LoRA rank 2, scale 0.5: 24 adapted module(s), 1,920 parameters '
    f'({100 * added / (base + added):.3f}% of {base + added:,}).'
  )


@pytest.mark.parametrize('rank', [4, 64])
def test_the_first_matrix_keeps_the_size_of_its_input(rank):
  # Of variance 1 / inputs, whatever the rank: x·A is then as large as x.
  adapters = lora.Adapters(lora.LoraConfig(rank=rank), frozenset(['']))
  dense = layers.Dense(7, ('embed', 'mlp'), adapters=adapters)
  rngs = {'params': jax.random.key(0), 'lora': jax.random.key(1)}
  variables = nn.meta.unbox(dense.init(rngs, np.zeros((1, 900), np.float32)))
  a = np.float64(variables['lora']['lora']['lora_a'])
  assert a.shape == (900, rank)
  # Of n normal numbers the spread is known to a share of 1 / sqrt(2 n).
  share = 5 / np.sqrt(2 * a.size)
  assert a.std() == pytest.approx(1 / np.sqrt(900), rel=share)
  assert abs(a.mean()) < 5 / 30 / np.sqrt(a.size)


def test_defaults():
  assert lora.LoraConfig() == lora.LoraConfig(
    rank=8,
    alpha=None,
    dropout_rate=0.0,
    rs_lora=False,
    target_modules=(r'.*attention/(query|key|value|out)',),
  )
