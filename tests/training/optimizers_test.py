import dataclasses
import functools
import math

import jax
import numpy as np
import optax
import pytest
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.training import layer_layout
from perlhf_jax.training import optimizers

STEPS = 20
PEAK = 0.5


def _reference_rate(schedule, warmup, final, step):
  """The learning rate of update `step`, counted from 0, in plain Python."""
  if step < warmup:
    return PEAK * (step + 1) / warmup
  share = (step - warmup) / (STEPS - warmup)
  if schedule == 'linear':
    return PEAK * (1 - share * (1 - final))
  if schedule == 'cosine':
    return PEAK * (final + (1 - final) * (1 + math.cos(math.pi * share)) / 2)
  if schedule == 'rsqrt':
    return PEAK * math.sqrt(warmup / step)
  return PEAK


@pytest.mark.parametrize(
  ('schedule', 'warmup'),
  [
    (schedule, warmup)
    for schedule in ('constant', 'linear', 'cosine', 'rsqrt')
    for warmup in (0, 1, 5)
    if warmup or schedule != 'rsqrt'  # Refused, see below.
  ],
)
@pytest.mark.parametrize('final', [0.0, 0.1])
def test_schedules_match_their_formulas(schedule, warmup, final):
  config = optimizers.Optimizer(
    learning_rate=PEAK,
    schedule=schedule,
    warmup_steps=warmup,
    final_fraction=final,
  )
  rate = optimizers.make_schedule(config, STEPS)
  for step in (0, 1, 3, 4, 5, 6, 12, STEPS - 1, STEPS):
    expected = _reference_rate(schedule, warmup, final, step)
    np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1e-7)


def test_a_warm_up_longer_than_training():
  config = optimizers.Optimizer(
    learning_rate=PEAK, schedule='linear', warmup_steps=50
  )
  rate = optimizers.make_schedule(config, STEPS)
  np.testing.assert_allclose(rate(19), PEAK * 20 / 50, rtol=1e-5)


def _run(config, params, gradients):
  """Returns parameters after each of several updates."""
  optimizer = optimizers.make_optimizer(config, STEPS)
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  history = []
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    history.append(params)
  return history


def _problem(shapes, steps=4):
  rng = np.random.default_rng(0)

  def tree(scale):
    return {
      name: (scale * rng.normal(size=shape)).astype(np.float32)
      for name, shape in shapes.items()
    }

  return tree(1.0), [tree(0.1 * (1 + i)) for i in range(steps)]


def _clip(gradient, norm):
  total = math.sqrt(sum(float(np.sum(g**2)) for g in gradient.values()))
  factor = 1.0 if norm is None or total < norm else norm / total
  return {name: np.float64(g) * factor for name, g in gradient.items()}


@pytest.mark.parametrize('clip_norm', [None, 0.05])
def test_adamw_matches_reference(clip_norm):
  config = optimizers.Optimizer(
    name='adamw',
    learning_rate=0.1,
    schedule='linear',
    warmup_steps=2,
    clip_norm=clip_norm,
    weight_decay=0.3,
    b1=0.8,
    b2=0.9,
  )
  params, gradients = _problem({'a': (3, 4), 'b': (5,)})
  history = _run(config, params, gradients)
  rates = [0.05, 0.1, 0.1, 0.1 * (1 - 1 / 18)]
  expected = {k: np.float64(v) for k, v in params.items()}
  first = {k: np.zeros_like(v) for k, v in expected.items()}
  second = {k: np.zeros_like(v) for k, v in expected.items()}
  for step, gradient in enumerate(gradients):
    for name, g in _clip(gradient, clip_norm).items():
      first[name] = 0.8 * first[name] + 0.2 * g
      second[name] = 0.9 * second[name] + 0.1 * g**2
      mean = first[name] / (1 - 0.8 ** (step + 1))
      square = second[name] / (1 - 0.9 ** (step + 1))
      direction = mean / (np.sqrt(square) + 1e-8) + 0.3 * expected[name]
      expected[name] = expected[name] - rates[step] * direction
      np.testing.assert_allclose(
        history[step][name], expected[name], rtol=1e-4, atol=1e-5
      )


def _rms(x):
  return math.sqrt(float(np.mean(np.square(x))))


# Where a weight lies, and whether its steps may be relative.
COLLECTIONS = {
  'params/encoder': True,
  'params/image_projection': False,
  'lora/encoder': False,
  'heads/value': False,
}


@pytest.mark.parametrize('collection', COLLECTIONS)
@pytest.mark.parametrize('relative', [False, True])
@pytest.mark.parametrize('weight_decay', [0.0, 0.3])
def test_adafactor_matches_reference(collection, relative, weight_decay):
  """Shazeer & Stern 2018 (arXiv:1804.04235), algorithms 4 and 5."""
  config = optimizers.Optimizer(
    learning_rate=0.1,
    clip_norm=1.0,
    weight_decay=weight_decay,
    multiply_by_parameter_scale=relative,
  )
  params, gradients = _problem({'small': (3, 4), 'large': (128, 130)})
  first, second = collection.split('/')
  history = _run(
    config,
    {first: {second: params}},
    [{first: {second: gradient}} for gradient in gradients],
  )
  history = [after[first][second] for after in history]
  relative = relative and COLLECTIONS[collection]
  expected = {k: np.float64(v) for k, v in params.items()}
  full = np.zeros((3, 4))
  rows, columns = np.zeros((128, 1)), np.zeros((1, 130))
  for step, gradient in enumerate(gradients):
    gradient = _clip(gradient, 1.0)
    decay = 1 - (step + 1) ** -0.8
    squares = {name: g**2 + 1e-30 for name, g in gradient.items()}
    full = decay * full + (1 - decay) * squares['small']
    rows = decay * rows + (1 - decay) * squares['large'].mean(1, keepdims=True)
    columns = decay * columns + (1 - decay) * squares['large'].mean(
      0, keepdims=True
    )
    moments = {'small': full, 'large': rows * columns / rows.mean()}
    for name, g in gradient.items():
      direction = g / np.sqrt(moments[name])
      direction = direction / max(1.0, _rms(direction))
      if relative:
        direction = direction * max(_rms(expected[name]), 1e-3)
      direction = direction + weight_decay * expected[name]
      expected[name] = expected[name] - 0.1 * direction
      np.testing.assert_allclose(
        history[step][name], expected[name], rtol=1e-4, atol=1e-5
      )


# Widths of 128 and more, which Adafactor factors, and stacks of two depths.
WIDE = dataclasses.replace(
  tiny_models.CONFIG,
  emb_dim=128,
  head_dim=64,
  mlp_dim=256,
  num_decoder_layers=3,
)


def _wide_state(tuning):
  """A model's trainable leaves, unrolled, with layers of many sizes."""
  params = tiny_models.params(WIDE)
  if tuning == 'full':
    trainable = {'params': params}
  else:
    _, lora = tiny_models.adapted(lora_lib.LoraConfig(rank=4), WIDE)
    trainable = {'lora': lora}
  sizes = np.random.default_rng(2)
  return jax.tree.map(
    lambda leaf: leaf * np.float32(10 ** sizes.uniform(-2, 1)), trainable
  )


@pytest.mark.parametrize('tuning', ['full', 'lora'])
@pytest.mark.parametrize('name', ('adafactor', 'adamw'))
def test_stacked_and_unrolled_layers_take_the_same_steps(tuning, name):
  config = optimizers.Optimizer(
    name=name, learning_rate=0.1, weight_decay=0.1, schedule='cosine'
  )
  rng = np.random.default_rng(3)
  unrolled = _wide_state(tuning)
  gradients = [
    jax.tree.map(
      lambda leaf: (
        rng.normal(size=leaf.shape) * 10 ** rng.uniform(-6, 0)
      ).astype(np.float32),
      unrolled,
    )
    for _ in range(5)
  ]
  stack = functools.partial(layer_layout.to_layout, scan_layers=True)
  expected = _run(config, unrolled, gradients)
  actual = _run(config, stack(unrolled), list(map(stack, gradients)))
  for step, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
    got = layer_layout.to_layout(got, scan_layers=False)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, leaf), other in zip(
      jax.tree_util.tree_leaves_with_path(wanted),
      jax.tree.leaves(got),
      strict=True,
    ):
      np.testing.assert_allclose(
        other, leaf, rtol=1e-5, atol=1e-6, err_msg=f'{step} {path}'
      )


def test_stacks_too_deep_for_adafactor_are_refused():
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(), STEPS)
  deep = {'params': {'encoder': {'layers': {'kernel': np.zeros((128, 2))}}}}
  with pytest.raises(
    errors.ConfigError, match='params/encoder/layers/kernel h'
  ):
    jax.eval_shape(optimizer.init, deep)


def test_adafactor_holds_rows_and_columns_of_large_matrices():
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(), STEPS)
  state = jax.eval_shape(
    optimizer.init, {'large': np.zeros((512, 256), np.float32)}
  )
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(state)) < 1000


def test_each_subtree_has_an_optimizer_of_its_own():
  configs = {
    'policy': optimizers.Optimizer(
      name='adamw', learning_rate=0.1, clip_norm=0.05
    ),
    'value': optimizers.Optimizer(learning_rate=0.02, clip_norm=0.5),
  }
  params, gradients = {}, [{} for _ in range(4)]
  for name, scale in (('policy', 1.0), ('value', 1e3)):
    params[name], some = _problem({'a': (3, 4), 'b': (5,)})
    for step, gradient in enumerate(some):
      gradients[step][name] = jax.tree.map(lambda g, s=scale: g * s, gradient)
  both = optimizers.by_name(
    {n: optimizers.make_optimizer(c, STEPS) for n, c in configs.items()}
  )
  state = both.init(params)
  assert set(state) == set(params)
  update = jax.jit(both.update)
  for step, gradient in enumerate(gradients):
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    for name, config in configs.items():
      # As if the other were not there: its gradient is no part of the norm.
      alone = [g[name] for g in gradients[: step + 1]]
      start, _ = _problem({'a': (3, 4), 'b': (5,)})
      wanted = _run(config, start, alone)[-1]
      for leaf in wanted:
        np.testing.assert_allclose(
          params[name][leaf], wanted[leaf], rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'name': 'sgd'},
      "Optimizer.name is 'sgd'; it must be one of 'adafactor', 'ad",
    ),
    (
      {'schedule': 'poly'},
      "Optimizer.schedule is 'poly'; it must be one of 'con",
    ),
    ({'schedule': 'rsqrt'}, 'Optimizer.warmup_steps to at least 1'),
  ],
)
def test_bad_configurations(fields, message):
  with pytest.raises(errors.ConfigError, match=message):
    optimizers.Optimizer(**fields)
