import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_roles

from perlhf_jax.rl import alarms
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import grpo
from perlhf_jax.rl import kl_controller
from perlhf_jax.rl import minibatches
from perlhf_jax.rl import ppo
from perlhf_jax.rl import reinforce
from perlhf_jax.rl import rewards
from perlhf_jax.rl import rloo
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import state as state_lib
from perlhf_jax.rl import step
from perlhf_jax.training import optimizers

BETA = 0.2
RATE, MOMENTUM, CLIP = 0.1, 0.9, 0.3
CONTROLLER = kl_controller.AdaptiveKl(target=0.05, horizon=20)
NORMALIZE = rewards.RewardShaping(normalize=True)

SETTINGS = {
  'reinforce': (reinforce.Reinforce(), {}),
  'reinforce, whitened': (
    reinforce.Reinforce(normalize_advantages=True, value_coefficient=0.3),
    {},
  ),
  'reinforce, accumulated': (
    reinforce.Reinforce(normalize_advantages=True, value_coefficient=0.3),
    {'accumulation_steps': 2},
  ),
  'rloo': (rloo.Rloo(), {}),
  'grpo': (grpo.Grpo(epochs=2, minibatches=2), {'controller': CONTROLLER}),
  'ppo': (
    ppo.Ppo(epochs=2, minibatches=2),
    {'controller': CONTROLLER, 'shaping': NORMALIZE},
  ),
  'ppo, accumulated': (
    ppo.Ppo(epochs=2, minibatches=2),
    {'shaping': NORMALIZE, 'accumulation_steps': 2},
  ),
}


@pytest.fixture(scope='module')
def roles():
  return tiny_roles.make()


@pytest.fixture(scope='module')
def samples(roles):
  """Assessed samples on the host, with random scores."""
  models, trainable, frozen = roles
  rollout = tiny_roles.make_rollout(models)
  samples = rollout(trainable, frozen, 0, tiny_roles.prompts())
  samples = jax.tree.map(np.asarray, samples)
  rng = np.random.default_rng(1)
  shape = samples.response_tokens.shape[:2]
  return samples.replace(scores=rng.normal(size=shape).astype(np.float32))


def _optimizer(trainable, clip=CLIP, rate=RATE):
  one = optax.chain(
    optax.clip_by_global_norm(clip), optax.sgd(rate, momentum=MOMENTUM)
  )
  return optimizers.by_name(dict.fromkeys(trainable, one))


@pytest.fixture(scope='module')
def setups(roles):
  """From a name to a compiled `learn` and a first state; made once each."""
  models, everything, _ = roles
  made = {}

  def setup(name):
    if name not in made:
      settings = _settings(name)
      trainable = dict(everything)
      if not settings.algorithm.needs_value:
        del trainable['value']
      optimizer = _optimizer(trainable)
      learn = functools.partial(
        step.learn, models, settings, optimizer, lambda _: jnp.float32(RATE)
      )
      state = state_lib.create(trainable, optimizer, BETA)
      made[name] = jax.jit(learn), state
    return made[name]

  return setup


def _settings(name):
  algorithm, options = SETTINGS[name]
  return settings_lib.Settings(
    algorithm, tiny_roles.SAMPLING, BETA, seed=tiny_roles.SEED, **options
  )


def _samples_of(name, samples):
  settings = _settings(name)
  if settings.algorithm.needs_value and not settings.has_one_update:
    return samples
  return samples.replace(values=None)


def _learn(name, setups, roles, samples, state=None, **changes):
  learn, first = setups(name)
  samples = _samples_of(name, samples).replace(**changes)
  state = first if state is None else state
  return learn(state, {'params': roles[2]['params']}, samples)


def _assert_equal(actual, wanted):
  assert jax.tree.structure(actual) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, actual, wanted)


@pytest.mark.parametrize('name', SETTINGS)
def test_the_first_ratio_is_1(name, setups, roles, samples):
  state, metrics = _learn(name, setups, roles, samples)
  assert metrics['ratio_deviation'] < 1e-5
  # Only the first minibatch of a rollout sees the policy that sampled.
  _, again = _learn(name, setups, roles, samples, state)
  assert again['ratio_deviation'] > 1e-3
  off = samples.logprobs - 0.01
  _, wrong = _learn(name, setups, roles, samples, logprobs=off)
  np.testing.assert_allclose(
    wrong['ratio_deviation'], np.expm1(0.01), rtol=1e-3
  )


def _update_by_hand(name, roles, samples):
  """All updates of a rollout, as a loop; returns weights and mean loss."""
  algorithm, options = SETTINGS[name]
  models, trainable, frozen = roles
  frozen = {'params': frozen['params']}
  scores = samples.scores
  if options.get('shaping') is NORMALIZE:
    scores = (scores - scores.mean()) / scores.std()
  episodes = algorithm_lib.Episodes(
    mask=samples.response_mask,
    ended=(samples.response_tokens == 1).any(axis=-1),
    logprobs=samples.logprobs,
    ref_logprobs=samples.ref_logprobs,
    values=samples.values if algorithm.needs_value else None,
    scores=scores,
    max_length=tiny_roles.LENGTH,
  )
  targets = algorithm.targets(episodes, BETA)
  if not algorithm.needs_value:
    trainable = {'policy': trainable['policy']}

  @jax.jit
  def loss_and_gradient(trainable, samples, episodes, targets):
    def loss(trainable):
      outputs = tiny_roles.outputs(models, frozen, trainable, samples)
      result = algorithm.loss(outputs, episodes, targets, BETA)
      return result.loss_sum / result.weight_sum

    return jax.value_and_grad(loss)(trainable)

  batch = len(scores)
  orders = [np.arange(batch)]
  if algorithm.epochs > 1:
    orders = np.asarray(
      minibatches.orders(tiny_roles.SEED, 0, algorithm.epochs, batch)
    )
  weights = jax.tree.map(np.float64, trainable)
  speeds = jax.tree.map(np.zeros_like, weights)
  history = []
  for order in orders:
    for rows in np.split(order, algorithm.minibatches):
      part = jax.tree.map(
        lambda x, rows=rows: x[rows] if np.ndim(x) else x, (episodes, targets)
      )
      inputs = jax.tree.map(lambda x, rows=rows: x[rows], samples)
      loss, gradient = loss_and_gradient(
        jax.tree.map(np.float32, weights), inputs, *part
      )
      history.append(loss)
      for role, leaves in gradient.items():
        squares = [float(np.sum(np.square(g))) for g in jax.tree.leaves(leaves)]
        factor = min(1.0, CLIP / np.sqrt(sum(squares)))
        speeds[role] = jax.tree.map(
          lambda v, g, f=factor: MOMENTUM * v + f * np.float64(g),
          speeds[role],
          leaves,
        )
        weights[role] = jax.tree.map(
          lambda w, v: w - RATE * v, weights[role], speeds[role]
        )
  return weights, np.mean(history)


@pytest.mark.parametrize(
  'name', ['reinforce, whitened', 'rloo', 'ppo', 'ppo, accumulated']
)
def test_an_update_equals_one_made_by_hand(name, setups, roles, samples):
  state, metrics = _learn(name, setups, roles, samples)
  weights, loss = _update_by_hand(name, roles, samples)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4, atol=1e-6)
  before = setups(name)[1].trainable
  assert set(state.trainable) == set(weights)
  for role in weights:
    rows = zip(
      *map(jax.tree.leaves, (weights[role], state.trainable[role], before)),
      strict=False,
    )
    for wanted, actual, _ in rows:
      np.testing.assert_allclose(actual, wanted, atol=2e-6)
    moved = jax.tree.map(
      lambda a, b: np.abs(a - b).max(), state.trainable[role], before[role]
    )
    assert min(jax.tree.leaves(moved)) > 2e-5, role
  assert int(state.step) == 1


def test_one_update_has_the_values_of_a_pass_before_it(setups, roles, samples):
  ways = 'reinforce, whitened', 'reinforce, accumulated'
  one, before = (_samples_of(name, samples) for name in ways)
  assert one.values is None and before.values is not None
  (state, metrics), (wanted, wanted_metrics) = (
    _learn(name, setups, roles, samples) for name in ways
  )
  assert set(metrics) == set(wanted_metrics)
  assert {'explained_variance', 'value_loss'} < set(metrics)
  for name, value in wanted_metrics.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, wanted
  )


class _Probed(reinforce.Reinforce):
  """Reports random sums of the targets that its loss is given."""

  def loss(self, outputs, episodes, targets, kl_beta):
    output = super().loss(outputs, episodes, targets, kl_beta)
    sums = {**output.metric_sums, **_probe(targets, output.weight_sum)}
    return output._replace(metric_sums=sums)


def _probe(targets, weight):
  rng = np.random.default_rng(0)
  return {
    f'{name}_{number}': weight * jnp.sum(x * rng.normal(size=x.shape))
    for name, x in targets._asdict().items()
    for number in range(3)
  }


def test_one_update_has_the_targets_of_a_pass_before_it(roles, samples):
  models, trainable, frozen = roles
  optimizer = _optimizer(trainable)
  learn = functools.partial(
    step.learn,
    models,
    settings_lib.Settings(_Probed(), tiny_roles.SAMPLING, BETA),
    optimizer,
    lambda _: jnp.float32(RATE),
  )
  _, metrics = jax.jit(learn)(
    state_lib.create(trainable, optimizer, BETA),
    {'params': frozen['params']},
    samples.replace(values=None),
  )
  wanted = reinforce.Reinforce().targets(
    samples.episodes(tiny_roles.LENGTH), BETA
  )
  for name, value in _probe(wanted, 1.0).items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_orders_are_permutations_of_a_stream_of_their_own():
  orders = np.asarray(minibatches.orders(3, 5, 2, 40))
  np.testing.assert_array_equal(np.sort(orders), [range(40)] * 2)
  assert (orders[0] != orders[1]).any()
  for seed, number in (3, 6), (4, 5):
    assert (minibatches.orders(seed, number, 2, 40) != orders).any()
  # What sampling draws from at this step, and at no step does it draw this.
  key = jax.random.fold_in(jax.random.key(3), 5)
  same = [jax.random.permutation(k, 40) for k in jax.random.split(key, 2)]
  assert (np.asarray(same) != orders).any(axis=1).all()


def test_another_step_has_another_order(setups, roles, samples):
  # The same rollout ends elsewhere.
  _, first = setups('ppo')
  one, _ = _learn('ppo', setups, roles, samples)
  later = first.replace(step=jnp.int32(1))
  two, _ = _learn('ppo', setups, roles, samples, later)
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), one.trainable, two.trainable
  )
  assert max(jax.tree.leaves(moved)) > 1e-5


def test_metrics_describe_the_rollout(setups, roles, samples):
  _, metrics = _learn('reinforce', setups, roles, samples)
  mask, scores = samples.response_mask, samples.scores
  difference = samples.logprobs - samples.ref_logprobs
  kl = np.where(mask, difference, 0).sum(axis=-1)
  ended = (np.where(mask, samples.response_tokens, 0) == 1).any(axis=-1)
  wanted = {
    'score': scores.mean(),
    'score_std': scores.std(),
    'kl_k1': kl.mean(),
    'kl_k1_standard_error': kl.std(ddof=1) / np.sqrt(kl.size),
    'kl_beta': BETA,
    'objective': ((1 - BETA) * scores - BETA * kl).mean(),
    'entropy': -samples.logprobs[mask].mean(),
    'response_length': mask.sum() / scores.size,
    'truncated': 1 - ended.mean(),
    'skipped': 0,
    'skipped_in_a_row': 0,
    'learning_rate': RATE,
  }
  for name, value in wanted.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name
    )
  rewards = np.where(mask, -BETA * difference, 0)
  last = mask.sum(axis=-1, keepdims=True) - 1
  ends = np.take_along_axis(rewards, last, -1) + (1 - BETA) * scores[..., None]
  np.put_along_axis(rewards, last, ends, axis=-1)
  returns = np.flip(np.cumsum(np.flip(rewards, -1), -1), -1)[mask]
  explained = 1 - np.var(returns - samples.values[mask]) / np.var(returns)
  np.testing.assert_allclose(
    metrics['explained_variance'], explained, rtol=1e-4
  )


@pytest.mark.parametrize('name', ['grpo', 'rloo'])
def test_every_algorithm_logs_k1_and_k3(name, setups, roles, samples):
  _, metrics = _learn(name, setups, roles, samples)
  x = np.where(
    samples.response_mask, samples.ref_logprobs - samples.logprobs, 0
  ).astype(float)
  k1, k3 = (-x).sum(axis=-1), (np.exp(x) - 1 - x).sum(axis=-1)
  np.testing.assert_allclose(metrics['kl_k1'], k1.mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics['kl_k3'], k3.mean(), rtol=1e-4)
  trained_on = {'grpo': k3, 'rloo': k1}[name]
  objective = (1 - BETA) * samples.scores - BETA * trained_on
  np.testing.assert_allclose(metrics['objective'], objective.mean(), rtol=1e-4)


@pytest.mark.parametrize('name', ['grpo', 'rloo', 'ppo'])
def test_the_alarm_of_a_negative_kl_works_for_every_algorithm(
  name, setups, roles, samples
):
  _, sound = _learn(name, setups, roles, samples)
  # As if the reference had been run with another temperature.
  better = samples.logprobs + np.float32(0.5)
  _, wrong = _learn(name, setups, roles, samples, ref_logprobs=better)
  healthy = {'ratio_deviation': 0.0, 'entropy': 1.0, 'truncated': 0.0}
  for metrics, found in (sound, []), (wrong, ['negative_kl']):
    values = {key: float(value) for key, value in metrics.items()} | healthy
    assert alarms.Alarms().check(1, values) == found


def test_the_constant_is_the_length_limit_and_cut_responses_are_left_out(
  roles, samples
):
  models, trainable, frozen = roles
  trainable = {'policy': trainable['policy']}
  optimizer = _optimizer(trainable)
  # As if every response of this rollout had come out short.
  limit = 3 * tiny_roles.LENGTH
  sampling = dataclasses.replace(tiny_roles.SAMPLING, max_length=limit)
  algorithm = rloo.Rloo(aggregation='constant', mask_truncated=True)
  learn = functools.partial(
    step.learn,
    models,
    settings_lib.Settings(algorithm, sampling, kl_beta=0.0),
    optimizer,
    lambda _: jnp.float32(RATE),
  )
  _, metrics = jax.jit(learn)(
    state_lib.create(trainable, optimizer, 0.0),
    {'params': frozen['params']},
    samples.replace(values=None),
  )
  total = kept = 0
  for b, r in np.ndindex(*samples.scores.shape):
    length = samples.response_mask[b, r].sum()
    if 1 not in samples.response_tokens[b, r, :length]:
      continue
    # Of the two responses of a prompt each is the baseline of the other.
    advantage = samples.scores[b, r] - samples.scores[b, 1 - r]
    total -= advantage * samples.logprobs[b, r, :length].sum() / limit
    kept += 1
  assert 0 < kept < samples.scores.size
  np.testing.assert_allclose(metrics['policy_loss'], total / kept, rtol=1e-4)


@pytest.mark.parametrize('name', ['reinforce', 'rloo', 'ppo'])
def test_a_step_that_is_not_finite_leaves_no_trace(
  name, setups, roles, samples
):
  bad = samples.scores.copy()
  bad[1, 0] = np.nan
  good, _ = _learn(name, setups, roles, samples)
  state, metrics = _learn(name, setups, roles, samples, good, scores=bad)
  for count in (1, 2):
    assert metrics['skipped'] == metrics['skipped_in_a_row'] == count
    assert int(state.skipped) == int(state.skipped_in_a_row) == count
    assert int(state.step) == 1 + count
    for field in ('trainable', 'opt_state', 'kl_beta', 'reward_moments'):
      _assert_equal(getattr(state, field), getattr(good, field))
    state, metrics = _learn(name, setups, roles, samples, state, scores=bad)
  state, metrics = _learn(name, setups, roles, samples, state)
  assert metrics['skipped'] == 3 and metrics['skipped_in_a_row'] == 0
  assert int(state.skipped) == 3 and int(state.skipped_in_a_row) == 0
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), state.trainable, good.trainable
  )
  assert min(jax.tree.leaves(moved)) > 0
  if name == 'ppo':
    assert state.reward_moments.count == 2 * samples.scores.size
    assert state.kl_beta != good.kl_beta


def test_one_bad_minibatch_is_skipped_and_the_others_count(
  setups, roles, samples
):
  # GRPO's groups do not mix: one minibatch of each epoch can be learned from.
  bad = samples.scores.copy()
  bad[1, 0] = np.inf
  _, first = setups('grpo')
  state, metrics = _learn('grpo', setups, roles, samples, scores=bad)
  assert metrics['skipped'] == metrics['skipped_in_a_row'] == 1
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), state.trainable, first.trainable
  )
  assert 0 < min(jax.tree.leaves(moved)) < 1
  assert state.kl_beta == first.kl_beta


@pytest.mark.parametrize('name', ['rloo', 'grpo'])
def test_a_constant_reward_moves_nothing_where_responses_are_compared(
  name, setups, roles, samples
):
  _, first = setups(name)
  first = first.replace(kl_beta=jnp.float32(0))
  same = np.full_like(samples.scores, 0.7)
  state, metrics = _learn(name, setups, roles, samples, first, scores=same)
  assert metrics['grad_norm'] == 0
  _assert_equal(state.trainable, first.trainable)
  # The smallest difference does.
  same[0, 0] += 0.1
  state, metrics = _learn(name, setups, roles, samples, first, scores=same)
  assert metrics['grad_norm'] > 0


@pytest.mark.parametrize('name', ['grpo', 'ppo'])
def test_the_controller_counts_responses(name, setups, roles, samples):
  state, metrics = _learn(name, setups, roles, samples)
  # The KL that the algorithm trains on.
  estimate = {'grpo': 'kl_k3', 'ppo': 'kl_k1'}[name]
  responses = tiny_roles.BATCH * tiny_roles.RESPONSES
  assert responses < CONTROLLER.horizon
  error = np.clip(float(metrics[estimate]) / CONTROLLER.target - 1, -0.2, 0.2)
  assert abs(error) > 0.01
  wanted = BETA * (1 + error * responses / CONTROLLER.horizon)
  assert float(state.kl_beta) == pytest.approx(wanted, rel=1e-5)


def test_a_huge_score_is_counted_and_does_not_silence_the_next(
  setups, roles, samples
):
  huge = samples.scores.copy()
  huge[1, 0] = 1e25
  state, metrics = _learn('ppo', setups, roles, samples, scores=huge)
  assert metrics['outliers'] == 1 and metrics['skipped'] == 0
  assert np.isfinite(float(metrics['grad_norm']))
  # Uncut, the spread would be infinite, and every score 0 from here on.
  assert 0.5 < float(state.reward_moments.std) < 50
  _, after = _learn('ppo', setups, roles, samples, state)
  assert after['outliers'] == 0
