import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_models

from perlhf_jax.core import masking
from perlhf_jax.models import lora
from perlhf_jax.models import prompts
from perlhf_jax.objectives import losses
from perlhf_jax.training import optimizers
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step

FEATURES = 3


def _loss(trainable, frozen, batch, rng):
  del rng
  predicted = batch['x'] @ (frozen['base'] + trainable['delta'])
  error = predicted - batch['y']
  return train_step.LossOutput(
    loss_sum=jnp.sum(batch['weights'] * error**2),
    weight_sum=jnp.sum(batch['weights']),
    metric_sums={'error': jnp.sum(batch['weights'] * jnp.abs(error))},
  )


def _batch(seed=0, rows=8):
  rng = np.random.default_rng(seed)
  return {
    'x': rng.normal(size=(rows, FEATURES)).astype(np.float32),
    'y': rng.normal(size=rows).astype(np.float32),
    # Very unequal, with parts that weigh nothing.
    'weights': np.array([5, 0, 1, 0, 0.1, 0, 9, 0][:rows], np.float32),
  }


def _start(config=None, **kwargs):
  config = config or optimizers.Optimizer(
    name='adamw', learning_rate=0.1, schedule='linear', clip_norm=0.5
  )
  optimizer = optimizers.make_optimizer(config, 10)
  schedule = optimizers.make_schedule(config, 10)
  loss_fn = kwargs.pop('loss_fn', _loss)
  step = train_step.make_train_step(
    train_step.gradients_of(loss_fn), optimizer, schedule, seed=3, **kwargs
  )
  trainable = {'delta': jnp.array([0.5, -1.0, 0.25])}
  frozen = {'base': jnp.array([1.0, 2.0, 3.0])}
  return jax.jit(step), train_state.create(trainable, optimizer), frozen


def test_one_step_matches_numpy():
  config = optimizers.Optimizer(name='adamw', learning_rate=0.1, clip_norm=None)
  step, state, frozen = _start(config)
  batch = _batch()
  new_state, metrics = step(state, frozen, batch)
  x, y, weights = (np.float64(batch[k]) for k in ('x', 'y', 'weights'))
  delta = np.float64(state.trainable['delta'])
  error = x @ (np.float64(frozen['base']) + delta) - y
  gradient = 2 * (weights * error) @ x / weights.sum()
  np.testing.assert_allclose(
    metrics['loss'], np.average(error**2, weights=weights), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics['error'], np.average(np.abs(error), weights=weights), rtol=1e-5
  )
  # The norm is that of the gradient before clipping.
  np.testing.assert_allclose(
    metrics['grad_norm'], np.linalg.norm(gradient), rtol=1e-5
  )
  np.testing.assert_allclose(
    new_state.trainable['delta'], delta - 0.1 * np.sign(gradient), rtol=1e-4
  )
  assert int(new_state.step) == 1


def test_gradients_are_clipped_by_the_trainable_norm():
  step, state, frozen = _start()
  gradients = []
  optimizer = optax.GradientTransformation(
    init=lambda params: (),
    update=lambda g, s, p: (gradients.append(g) or g, s),
  )
  clipped = optax.chain(optax.clip_by_global_norm(0.5), optimizer)
  plain = train_step.make_train_step(
    train_step.gradients_of(_loss), clipped, lambda s: s * 0.0, seed=0
  )
  _, metrics = plain(
    train_state.create(state.trainable, clipped), frozen, _batch()
  )
  assert metrics['grad_norm'] > 0.5
  np.testing.assert_allclose(optax.global_norm(gradients[0]), 0.5, rtol=1e-5)
  del step


def test_the_reported_rate_is_the_one_that_is_used():
  step, state, frozen = _start()
  for index in range(3):
    state, metrics = step(state, frozen, _batch(index))
    np.testing.assert_allclose(
      metrics['learning_rate'], 0.1 * (1 - index / 10), rtol=1e-6
    )


@pytest.mark.parametrize('parts', [2, 4, 8])
def test_accumulation_equals_the_whole_batch(parts):
  whole, state, frozen = _start()
  accumulated, _, _ = _start(accumulation_steps=parts)
  other = state
  for index in range(3):
    batch = _batch(index)
    state, metrics = whole(state, frozen, batch)
    other, other_metrics = accumulated(other, frozen, batch)
    np.testing.assert_allclose(
      other.trainable['delta'], state.trainable['delta'], atol=1e-6
    )
    for name, value in metrics.items():
      np.testing.assert_allclose(
        other_metrics[name], value, rtol=1e-6, atol=1e-6, err_msg=name
      )


def test_a_batch_without_weight_changes_nothing_and_is_finite():
  config = optimizers.Optimizer(name='adamw', learning_rate=0.1)
  step, state, frozen = _start(config)
  batch = {**_batch(), 'weights': np.zeros(8, np.float32)}
  new_state, metrics = step(state, frozen, batch)
  np.testing.assert_array_equal(
    new_state.trainable['delta'], state.trainable['delta']
  )
  assert metrics['loss'] == 0


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('parts', [1, 2])
def test_an_update_that_is_not_finite_can_be_skipped(bad, parts):
  step, state, frozen = _start(skip_nonfinite=True, accumulation_steps=parts)
  plain, _, _ = _start(accumulation_steps=parts)
  good, metrics = step(state, frozen, _batch())
  wanted, _ = plain(state, frozen, _batch())
  assert metrics['skipped'] == 0
  jax.tree.map(np.testing.assert_array_equal, good, wanted)
  batch = _batch(1)
  batch['y'][2] = bad
  after, metrics = step(good, frozen, batch)
  assert metrics['skipped'] == 1 and not np.isfinite(metrics['loss'])
  assert int(after.step) == 2
  for name in ('trainable', 'opt_state'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(after, name), getattr(good, name)
    )
  # Without the option the weights are gone.
  lost, metrics = plain(good, frozen, batch)
  assert 'skipped' not in metrics
  assert np.isnan(lost.trainable['delta']).any()


def test_a_gradient_that_is_not_finite_is_skipped_for_a_finite_loss():
  def loss(trainable, frozen, batch, rng):
    output = _loss(trainable, frozen, batch, rng)
    # The square root of 0 has an infinite slope.
    root = jnp.sqrt(jnp.sum(jnp.square(trainable['delta'] * 0)))
    return output._replace(loss_sum=output.loss_sum + root)

  step, state, frozen = _start(loss_fn=loss, skip_nonfinite=True)
  after, metrics = step(state, frozen, _batch())
  assert np.isfinite(metrics['loss']) and metrics['skipped'] == 1
  np.testing.assert_array_equal(
    after.trainable['delta'], state.trainable['delta']
  )


def _noise_loss(trainable, frozen, batch, rng):
  noise = jax.random.normal(rng, ())
  output = _loss(trainable, frozen, batch, rng)
  return output._replace(metric_sums={'noise': noise * output.weight_sum})


def test_randomness_is_a_function_of_seed_and_step():
  step, state, frozen = _start(loss_fn=_noise_loss)
  seen = []
  states = [state]
  for index in range(3):
    state, metrics = step(states[-1], frozen, _batch(index))
    states.append(state)
    seen.append(float(metrics['noise']))
  assert len(set(seen)) == 3
  _, again = step(states[2], frozen, _batch(2))
  np.testing.assert_allclose(float(again['noise']), seen[2], rtol=1e-6)


def test_parts_of_a_batch_have_randomness_of_their_own():
  seen = []

  def loss(trainable, frozen, batch, rng):
    jax.debug.callback(lambda n: seen.append(float(n)), jax.random.normal(rng))
    return _loss(trainable, frozen, batch, rng)

  step, state, frozen = _start(loss_fn=loss, accumulation_steps=4)
  jax.block_until_ready(step(state, frozen, _batch()))
  jax.effects_barrier()
  assert len(set(seen)) == 4


@jax.custom_vjp
def _tripwire(x):
  return x


def _forward(x):
  return x, None


def _backward(residual, gradient):
  raise AssertionError('a gradient of a frozen weight was asked for')


_tripwire.defvjp(_forward, _backward)


def test_the_tripwire_trips():
  with pytest.raises(AssertionError, match='frozen weight'):
    jax.grad(lambda x: _tripwire(x) ** 2)(1.0)


@pytest.fixture(scope='module')
def lora_run():
  """Two steps of LoRA training of a T5; a frozen gradient would raise."""
  model, adapters = tiny_models.adapted(
    lora.LoraConfig(rank=3, dropout_rate=0.1)
  )

  def loss(trainable, frozen, batch, rng):
    frozen = jax.tree.map(_tripwire, frozen)
    logits = model.apply(
      {**frozen, **trainable},
      prompts.of_tokens(batch['prompt']),
      batch['inputs'],
      deterministic=False,
      rngs={'dropout': rng},
    )
    output = losses.weighted_sums(
      losses.token_losses(logits, batch['targets']), batch['weights']
    )
    return train_step.LossOutput(output.loss_sum, output.weight_sum, {})

  config = optimizers.Optimizer(learning_rate=1e-2)
  optimizer = optimizers.make_optimizer(config, 2)
  step = jax.jit(
    train_step.make_train_step(
      train_step.gradients_of(loss),
      optimizer,
      optimizers.make_schedule(config, 2),
      seed=0,
    ),
    donate_argnums=0,
  )
  before = tiny_models.params()
  frozen = {'params': jax.tree.map(jnp.asarray, before)}
  start = {'lora': jax.tree.map(jnp.asarray, adapters)}
  state = train_state.create(start, optimizer)
  history = []
  for seed in range(2):
    prompt, _ = tiny_models.ragged_tokens(seed, 3, 9)
    targets, mask = tiny_models.ragged_tokens(seed + 9, 3, 7)
    batch = {
      'prompt': prompt,
      'inputs': masking.shift_right(targets),
      'targets': targets,
      'weights': mask.astype(np.float32),
    }
    state, metrics = step(state, frozen, batch)
    history.append(metrics)
  return before, frozen['params'], adapters, state, history


def test_frozen_weights_are_bit_identical_after_training(lora_run):
  before, after, _, _, _ = lora_run
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_every_adapter_is_trained(lora_run):
  _, _, before, state, history = lora_run
  assert set(state.trainable) == {'lora'}
  changed = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), before, state.trainable['lora']
  )
  assert min(jax.tree.leaves(changed)) > 1e-4
  assert all(np.isfinite(m['loss']) for m in history)
