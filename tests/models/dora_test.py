"""DoRA against loops, the formula's own gradient, its merge and its start."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_pali

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.models import dora
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import layers
from perlhf_jax.models import lora
from perlhf_jax.models import merge
from perlhf_jax.models import output_layer
from perlhf_jax.training import layer_layout

RANK, SCALE = 3, 2.0
DORA = lora.LoraConfig(rank=RANK, alpha=RANK * SCALE, dora=True)
EVERYWHERE = dataclasses.replace(DORA, target_modules=('.*',))


def _matrices(seed=0):
  rng = np.random.default_rng(seed)
  shapes = {'x': (4, 6), 'kernel': (6, 5), 'a': (6, RANK), 'b': (RANK, 5)}
  drawn = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
  return drawn | {
    'm': rng.uniform(0.5, 2, 5).astype(np.float32),
    'bias': rng.normal(size=5).astype(np.float32),
  }


def _dense(x, kernel, a, b, m, bias=None, config=DORA, **kwargs):
  dense = layers.Dense(
    kernel.shape[1],
    ('embed', 'mlp'),
    bias_init=None if bias is None else nn.initializers.zeros,
    adapters=lora.Adapters(config, frozenset([''])),
  )
  params = {'kernel': kernel} | ({} if bias is None else {'bias': bias})
  variables = {
    'params': params,
    'lora': {'lora': {'lora_a': a, 'lora_b': b, 'lora_m': m}},
  }
  return dense.apply(variables, x, **kwargs)


def _adapted_matrix(kernel, a, b, m):
  """Equation 5 of the paper in loops, in double precision."""
  adapted = np.zeros(kernel.shape)
  for o in range(kernel.shape[1]):
    column = [
      float(kernel[i, o])
      + SCALE * sum(float(a[i, r]) * float(b[r, o]) for r in range(RANK))
      for i in range(kernel.shape[0])
    ]
    norm = sum(value**2 for value in column) ** 0.5
    adapted[:, o] = [float(m[o]) * value / norm for value in column]
  return adapted


@pytest.mark.parametrize('with_bias', [False, True])
def test_forward_matches_loops(with_bias):
  arrays = _matrices()
  bias = arrays.pop('bias')
  y = _dense(**arrays, bias=bias if with_bias else None)
  x = arrays.pop('x')
  expected = np.float64(x) @ _adapted_matrix(**arrays) + with_bias * bias
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_gradient_matches_differences_with_the_norm_held():
  """Finite differences of a loss whose norms stay as they were."""
  arrays = {n: np.float64(v) for n, v in _matrices().items() if n != 'bias'}
  weights = np.random.default_rng(1).normal(size=(4, 5))
  held = np.sqrt(
    np.square(arrays['kernel'] + SCALE * arrays['a'] @ arrays['b']).sum(0)
  )

  def reference(x, kernel, a, b, m):
    return np.sum(weights * np.sin(x @ (kernel + SCALE * a @ b) * (m / held)))

  def loss(arrays):
    return jnp.sum(weights * jnp.sin(_dense(**arrays)))

  gradients = jax.grad(loss)({n: np.float32(v) for n, v in arrays.items()})
  for name, array in arrays.items():
    for index in np.ndindex(array.shape):
      ends = []
      for change in (1e-6, -1e-6):
        moved = array.copy()
        moved[index] += change
        ends.append(reference(**(arrays | {name: moved})))
      np.testing.assert_allclose(
        gradients[name][index],
        (ends[0] - ends[1]) / 2e-6,
        rtol=2e-4,
        atol=2e-5,
        err_msg=f'{name} {index}',
      )


def test_the_norm_has_no_gradient():
  arrays = _matrices()
  del arrays['bias']

  def free(b):
    direction = arrays['kernel'] + SCALE * arrays['a'] @ b
    return jnp.sum(
      arrays['x']
      @ (arrays['m'] * direction / jnp.linalg.norm(direction, axis=0))
    )

  ours = jax.grad(lambda b: jnp.sum(_dense(**(arrays | {'b': b}))))(arrays['b'])
  # Another gradient than with a norm that moves: the paper's choice is seen.
  assert np.abs(ours - jax.grad(free)(arrays['b'])).max() > 0.1


def test_dropout_is_of_the_adapters_input_only():
  arrays = _matrices()
  del arrays['bias']
  config = dataclasses.replace(DORA, dropout_rate=0.5)

  def apply(b):
    return _dense(
      **(arrays | {'b': b}),
      config=config,
      deterministic=False,
      rngs={'dropout': jax.random.key(0)},
    )

  assert np.abs(apply(arrays['b']) - _dense(**arrays)).max() > 1e-2
  zero = np.zeros_like(arrays['b'])
  np.testing.assert_allclose(
    apply(zero), _dense(**(arrays | {'b': zero})), rtol=1e-6
  )


def test_a_column_of_zeros_is_no_nan():
  arrays = _matrices()
  del arrays['bias']
  for name in ('kernel', 'b'):
    arrays[name][:, 2] = 0
  arrays['m'][2] = 0

  def loss(adapters):
    return jnp.sum(_dense(**(arrays | adapters)))

  adapters = {name: arrays[name] for name in ('a', 'b', 'm')}
  assert np.isfinite(loss(adapters))
  for leaf in jax.tree.leaves(jax.grad(loss)(adapters)):
    assert np.isfinite(leaf).all()
  merged = dora.normalized(arrays['kernel'], arrays['m'])
  assert np.isfinite(merged).all() and not merged[:, 2].any()


def test_columns_that_the_update_cancels_stay_within_bounds():
  arrays = _matrices()
  del arrays['bias']
  update = SCALE * np.float64(arrays['a']) @ np.float64(arrays['b'])
  # Nothing but rounding is left of the first four; a hundredth of the last.
  arrays['kernel'] = np.float32(-update * [1, 1, 1, 1, 0.99])

  def outputs(adapters):
    return _dense(**(arrays | adapters))

  adapters = {name: arrays[name] for name in ('a', 'b', 'm')}
  y = outputs(adapters)
  # No column of the length m gives more.
  most = np.linalg.norm(arrays['x'], axis=1)[:, None] * arrays['m']
  assert (np.abs(y) <= most).all()
  gradients = jax.grad(lambda adapters: jnp.sum(outputs(adapters)))(adapters)
  for leaf in jax.tree.leaves(gradients):
    assert np.abs(leaf).max() < 1e5
  matrix = _adapted_matrix(**{n: x for n, x in arrays.items() if n != 'x'})
  expected = np.float64(arrays['x']) @ matrix[:, 4]
  np.testing.assert_allclose(y[:, 4], expected, rtol=1e-2, atol=1e-2)


def _inputs():
  response, _ = tiny_models.ragged_tokens(1, 3, 7)
  return tiny_models.prompts(0, 3, 9), response


def _started(params, adapters):
  """The magnitudes of a run before its first step."""
  places = jax.tree.map(
    lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), adapters
  )
  return dora.with_first_magnitudes(adapters, params, places)


@pytest.mark.parametrize(
  ('scan_layers', 'held'),
  [(False, 'float32'), (True, 'float32'), (True, 'bfloat16')],
)
def test_the_start_is_the_backbone(scan_layers, held):
  config = dataclasses.replace(tiny_models.CONFIG, scan_layers=scan_layers)
  model, adapters = tiny_models.adapted(EVERYWHERE, config)
  params = frozen_dtypes.cast(
    tiny_models.params(config), dataclasses.replace(config, dtype=held)
  )
  flat = tree_paths.flatten(adapters)
  zero = tree_paths.unflatten(
    {p: x * (not p.endswith('lora_b')) for p, x in flat.items()}
  )
  started = _started(params, zero)
  for path, leaf in tree_paths.flatten(started).items():
    if path.endswith('lora_m'):
      kernel = tree_paths.flatten(params)[
        path.removesuffix('lora/lora_m') + 'kernel'
      ]
      assert kernel.dtype == held and leaf.dtype == np.float32
      norms = np.sqrt(np.square(np.asarray(kernel, np.float64)).sum(-2))
      np.testing.assert_allclose(leaf, norms, rtol=1e-6)
    else:
      np.testing.assert_array_equal(leaf, flat[path] * ('_a' in path[-3:]))
  apply = jax.jit(model.apply)
  bare = jax.jit(encoder_decoder.make_model(config).apply)
  base = bare({'params': params}, *_inputs())
  np.testing.assert_allclose(
    apply({'params': params, 'lora': started}, *_inputs()), base, atol=2e-5
  )
  other = apply({'params': params, 'lora': adapters}, *_inputs())
  assert np.abs(other - base).max() > 0.1


def test_names_shapes_and_axes():
  for scan_layers, layer in ((False, 'layers_1'), (True, 'layers')):
    config = dataclasses.replace(tiny_models.CONFIG, scan_layers=scan_layers)
    adapters = lora.resolve(DORA, encoder_decoder.dense_module_paths(config))
    boxed = tiny_models.abstract_variables(config, adapters)['lora']
    axes = tree_paths.flatten(nn.get_partition_spec(boxed))
    shapes = tree_paths.flatten(nn.meta.unbox(boxed))
    stack = ('layers',) if scan_layers else ()
    for module, axis, width in (
      ('encoder_decoder_attention/out', 'embed', 16),
      ('self_attention/query', 'joined_kv', 24),
    ):
      path = f'decoder/{layer}/{module}/lora/lora_m'
      assert tuple(axes[path]) == (*stack, axis)
      assert shapes[path].shape == (2,) * scan_layers + (width,)
    # One magnitude per output feature: 18 query, key, value and 6 out layers.
    count = 24 * RANK * (16 + 24) + 18 * 24 + 6 * 16
    assert tree_paths.count_parameters(boxed) == count
  described = lora.describe(adapters, boxed, tiny_models.params())
  assert described.startswith('DoRA rank 3, scale 2: ')


@pytest.mark.parametrize('scan_layers', [False, True])
def test_merged_model_equals_unmerged(scan_layers):
  config = dataclasses.replace(tiny_models.CONFIG, scan_layers=scan_layers)
  model, adapters = tiny_models.adapted(EVERYWHERE, config)
  params = tiny_models.params(config)
  merged, report = merge.merge_and_check(
    model, params, adapters, tolerance=2e-5
  )
  assert report.max_logit_difference > 0
  flat = {
    name: tree_paths.flatten(layer_layout.to_layout(tree, False))
    for name, tree in (
      ('params', params),
      ('lora', adapters),
      ('merged', merged),
    )
  }
  path = 'decoder/layers_1/mlp/wi_1'
  a, b, m = (flat['lora'][f'{path}/lora/lora_{x}'] for x in 'abm')
  np.testing.assert_allclose(
    flat['merged'][f'{path}/kernel'],
    _adapted_matrix(flat['params'][f'{path}/kernel'], a, b, m),
    atol=2e-6,
  )
  with pytest.raises(errors.ConfigError, match=r'DoRA .*LoraConfig\.dora'):
    lora.unmerge_lora(merged, adapters, EVERYWHERE)


def test_lengths_that_a_bfloat16_backbone_loses_are_counted():
  model, adapters = tiny_models.adapted(DORA)
  coarse = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.bfloat16), tiny_models.params()
  )
  flat = tree_paths.flatten(adapters)
  # Without A·B, and longer by 0.3%, which 8 bits show in some entries.
  zero = {p: x * (not p.endswith('lora_b')) for p, x in flat.items()}
  started = tree_paths.flatten(_started(coarse, tree_paths.unflatten(zero)))
  longer = tree_paths.unflatten(
    {p: x * (1.003 if p.endswith('lora_m') else 1) for p, x in started.items()}
  )
  merged, report = merge.merge_and_check(model, coarse, longer, tolerance=1.0)
  before, after = (tree_paths.flatten(tree) for tree in (coarse, merged))
  sites = [p.removesuffix('lora/lora_m') for p in flat if p.endswith('lora_m')]
  kept = [
    np.mean(np.asarray(before[f'{p}kernel'] == after[f'{p}kernel']))
    for p in sites
  ]
  # All sites are of one size.
  np.testing.assert_allclose(report.lost_updates, np.mean(kept), atol=1e-3)
  assert 0.2 < report.lost_updates < 0.8


def test_a_pali_with_biases_merges():
  config = dataclasses.replace(
    DORA, target_modules=('vit/.*/(query|out|Dense_0)', 'encoder/.*')
  )
  model, adapters = tiny_models.adapted(config, tiny_pali.CONFIG)
  merged, report = merge.merge_and_check(
    model, tiny_models.params(tiny_pali.CONFIG), adapters, tolerance=5e-5
  )
  assert report.max_logit_difference <= 5e-5 and 'vit' in merged


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_chunks_of_an_adapted_output_layer(dtype, monkeypatch):
  config = dataclasses.replace(tiny_models.CONFIG, dtype=dtype)
  model, adapters = tiny_models.adapted(
    dataclasses.replace(DORA, target_modules=('decoder/logits_dense',)), config
  )
  variables = {'params': tiny_models.params(), 'lora': adapters}
  hidden = jnp.asarray(
    np.random.default_rng(0).normal(size=(2, 8, 16)), config.compute_dtype
  )

  def total(lora):
    number, _ = output_layer.per_token(
      model,
      variables | {'lora': lora},
      hidden,
      lambda logits: (jax.nn.logsumexp(logits, -1), ()),
    )
    return jnp.sum(number)

  def of_longer():
    """What lengths of 1.001 add: in bfloat16 it is 1, and adds nothing."""
    flat = tree_paths.flatten(adapters)
    ones, longer = (
      total(
        tree_paths.unflatten(
          flat | {p: x * 0 + length for p, x in flat.items() if '_m' in p[-2:]}
        )
      )
      for length in (np.float32(1), np.float32(1.001))
    )
    return longer - ones

  whole, added = jax.value_and_grad(total)(adapters), of_longer()
  monkeypatch.setattr(output_layer, 'CHUNK_BYTES', 2 * 3 * 40 * 4)
  tolerance = (
    {'rtol': 1e-5, 'atol': 1e-5}
    if dtype == 'float32'
    else {'rtol': 2e-2, 'atol': 1e-2}
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **tolerance),
    jax.value_and_grad(total)(adapters),
    whole,
  )
  assert abs(added) > 1e-3
  np.testing.assert_allclose(of_longer(), added, rtol=0.1)
