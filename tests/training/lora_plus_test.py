"""Learning rates of `lora_b` apart from the others' (LoRA+)."""

import jax
import numpy as np
import optax
import pytest

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.training import optimizers

STEPS, RATIO = 5, 16.0
SHAPES = {
  'lora/decoder/layers/mlp/wo/lora/lora_a': (2, 6, 3),
  'lora/decoder/layers/mlp/wo/lora/lora_b': (2, 3, 5),
  'lora/encoder/layers_0/attention/out/lora/lora_a': (140, 130),
  'lora/encoder/layers_0/attention/out/lora/lora_b': (130, 140),
  'heads/score/kernel': (5, 1),
  'params/image_projection/kernel': (4, 5),
}


def _tree(seed):
  rng = np.random.default_rng(seed)
  return tree_paths.unflatten(
    {p: rng.normal(size=s).astype(np.float32) for p, s in SHAPES.items()}
  )


def _history(config):
  """Flat parameters after each of several updates."""
  optimizer = optimizers.make_optimizer(config, STEPS)
  params, history = _tree(0), []
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for step in range(STEPS):
    updates, state = update(_tree(1 + step), state, params)
    params = optax.apply_updates(params, updates)
    history.append(tree_paths.flatten(params))
  return history


@pytest.mark.parametrize('name', ['adafactor', 'adamw'])
@pytest.mark.parametrize('schedule', ['constant', 'cosine'])
def test_b_moves_as_under_its_own_rate_and_the_others_as_before(name, schedule):
  def config(rate, ratio=1.0):
    return optimizers.Optimizer(
      name=name,
      learning_rate=rate,
      schedule=schedule,
      warmup_steps=2,
      weight_decay=0.1,
      lora_b_ratio=ratio,
    )

  # The two optimizers treat each leaf by itself, but for the gradient's norm.
  plain, fast = _history(config(0.01)), _history(config(0.01 * RATIO))
  both = _history(config(0.01, RATIO))
  for step in range(STEPS):
    for path, leaf in both[step].items():
      expected = fast if path.endswith('lora_b') else plain
      np.testing.assert_allclose(
        leaf, expected[step][path], rtol=2e-5, atol=2e-6, err_msg=path
      )
  b = 'lora/decoder/layers/mlp/wo/lora/lora_b'
  assert np.abs(both[-1][b] - plain[-1][b]).max() > 0.1


def test_weight_decay_alone_is_multiplied():
  # Without a gradient, decay is all that moves a weight.
  config = optimizers.Optimizer(
    learning_rate=0.01, weight_decay=0.5, lora_b_ratio=4.0
  )
  optimizer = optimizers.make_optimizer(config, STEPS)
  params = _tree(0)
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  updates = tree_paths.flatten(updates)
  for path, leaf in tree_paths.flatten(params).items():
    rate = 0.04 if path.endswith('lora_b') else 0.01
    np.testing.assert_allclose(updates[path], -rate * 0.5 * leaf, rtol=1e-5)


@pytest.mark.parametrize('name', ['adafactor', 'adamw'])
def test_a_ratio_changes_no_checkpoint(name):
  def state(ratio):
    config = optimizers.Optimizer(name=name, lora_b_ratio=ratio)
    return jax.eval_shape(
      optimizers.make_optimizer(config, STEPS).init, _tree(0)
    )

  assert jax.tree.structure(state(1.0)) == jax.tree.structure(state(RATIO))
  assert jax.tree.leaves(state(1.0)) == jax.tree.leaves(state(RATIO))


def test_policy_and_value_model_have_ratios_of_their_own():
  ratios = {'policy': 3.0, 'value': 1.0}
  optimizer = optimizers.by_name(
    {
      role: optimizers.make_optimizer(
        optimizers.Optimizer(lora_b_ratio=ratio, clip_norm=None), STEPS
      )
      for role, ratio in ratios.items()
    }
  )
  params = dict.fromkeys(ratios, _tree(0))
  gradients = dict.fromkeys(ratios, _tree(1))
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  flat = {role: tree_paths.flatten(updates[role]) for role in ratios}
  for path, leaf in flat['value'].items():
    factor = 3.0 if path.endswith('lora_b') else 1.0
    np.testing.assert_allclose(flat['policy'][path], factor * leaf, rtol=1e-6)


def test_full_tuning_has_no_b():
  config = optimizers.Optimizer(lora_b_ratio=4.0)
  with pytest.raises(errors.ConfigError, match=r'lora_b_ratio is 4.*adapters'):
    optimizers.check_adapted(config, None)
  optimizers.check_adapted(config, lora_lib.LoraConfig())
  optimizers.check_adapted(optimizers.Optimizer(), None)
  whole = {'params': {'encoder': {'kernel': np.zeros((3, 4))}}}
  with pytest.raises(errors.ConfigError, match=r'lora_b_ratio is 4.*adapters'):
    jax.eval_shape(optimizers.make_optimizer(config, STEPS).init, whole)


@pytest.mark.parametrize('ratio', [0, -1.0])
def test_bad_ratios(ratio):
  with pytest.raises(errors.ConfigError, match='lora_b_ratio is'):
    optimizers.Optimizer(lora_b_ratio=ratio)
