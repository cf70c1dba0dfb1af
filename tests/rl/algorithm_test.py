"""Properties that every algorithm must have, each against loops."""

import functools

import jax
import jax.numpy as jnp
import loop_algorithms
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.rl import algorithm
from perlhf_jax.rl import grpo
from perlhf_jax.rl import ppo
from perlhf_jax.rl import reinforce
from perlhf_jax.rl import rloo

BETA = 0.2
METHODS = {
  'reinforce': reinforce.Reinforce(value_coefficient=0.7),
  'reinforce, normalized': reinforce.Reinforce(normalize_advantages=True),
  'reinforce, token': reinforce.Reinforce(
    aggregation='token', mask_truncated=True
  ),
  'rloo': rloo.Rloo(),
  'rloo, constant': rloo.Rloo(aggregation='constant', mask_truncated=True),
  'grpo': grpo.Grpo(),
  # Dr. GRPO, with two bounds.
  'grpo, constant': grpo.Grpo(
    normalize=None, clip_ratio=0.1, clip_ratio_high=0.25, aggregation='constant'
  ),
  # DAPO, with advantages scaled by batch.
  'grpo, token': grpo.Grpo(
    normalize='batch',
    clip_ratio_high=0.28,
    aggregation='token',
    mask_truncated=True,
  ),
  'grpo, gspo': grpo.Grpo(
    ratio='sequence', clip_ratio=0.05, clip_ratio_high=0.07
  ),
  'grpo, cispo': grpo.Grpo(
    surrogate='cispo', aggregation='token', clip_ratio_high=0.3
  ),
  # REINFORCE++ with baseline.
  'grpo, whitened': grpo.Grpo(
    normalize='whiten', aggregation='token', kl_estimator='k2'
  ),
  'ppo': ppo.Ppo(),
  'ppo, sequence': ppo.Ppo(
    clip_ratio_high=0.4, aggregation='sequence', mask_truncated=True
  ),
  'ppo, no value clip': ppo.Ppo(
    value_clip=None, gamma=0.9, gae_lambda=0.8, value_coefficient=0.1
  ),
}
every_method = pytest.mark.parametrize('name', METHODS)


def _lengths(name):
  if METHODS[name].min_samples > 1:
    return loop_algorithms.GROUP_LENGTHS
  return loop_algorithms.LENGTHS


def _batch(name, garbage=np.nan, seed=0):
  return loop_algorithms.random_batch(
    _lengths(name), seed, METHODS[name].needs_value, garbage
  )


def _loops(name):
  kind = name.split(',')[0]
  return (
    getattr(loop_algorithms, f'{kind}_targets'),
    getattr(loop_algorithms, f'{kind}_loss'),
  )


def _reference(name, episodes, outputs, beta=BETA):
  """The batch as lists, with targets."""
  prompts = loop_algorithms.ragged(episodes, outputs)
  _loops(name)[0](prompts, beta, METHODS[name])
  return prompts


@functools.cache
def _jitted(name):
  method = METHODS[name]

  @jax.jit
  def run(outputs, episodes, beta):
    targets = method.targets(episodes, beta)

    def loss(outputs):
      result = method.loss(outputs, episodes, targets, beta)
      return result.loss_sum, result

    gradients, result = jax.grad(loss, has_aux=True)(outputs)
    return targets, result, gradients

  return run


def _run(name, episodes, outputs, beta=BETA):
  """Targets, loss and gradients, jitted, with β a traced scalar."""
  return _jitted(name)(outputs, episodes, np.float32(beta))


@every_method
@pytest.mark.parametrize('beta', [0.0, BETA, 1.0])
def test_targets_equal_loops(name, beta):
  episodes, outputs = _batch(name)
  targets, _, _ = _run(name, episodes, outputs, beta)
  prompts = _reference(name, episodes, outputs, beta)
  shape = episodes.mask.shape
  np.testing.assert_allclose(
    targets.advantages,
    loop_algorithms.dense(prompts, 'advantages', shape),
    rtol=1e-4,
    atol=1e-5,
  )
  assert (targets.returns is not None) == METHODS[name].needs_value
  if targets.returns is not None:
    np.testing.assert_allclose(
      targets.returns,
      loop_algorithms.dense(prompts, 'returns', shape),
      rtol=1e-4,
      atol=1e-5,
    )


@every_method
@pytest.mark.parametrize('beta', [0.0, BETA, 1.0])
def test_losses_and_metrics_equal_loops(name, beta):
  episodes, outputs = _batch(name)
  _, result, _ = _run(name, episodes, outputs, beta)
  loss, weight, metrics = _loops(name)[1](
    _reference(name, episodes, outputs, beta), beta, METHODS[name]
  )
  assert float(result.loss_sum) == pytest.approx(loss, rel=1e-4, abs=1e-5)
  assert float(result.weight_sum) == weight
  assert set(result.metric_sums) == set(metrics)
  for key, expected in metrics.items():
    actual = float(result.metric_sums[key])
    assert actual == pytest.approx(expected, rel=1e-4, abs=1e-5), key
  if 'clip_fraction' in metrics:
    assert 0 < metrics['clip_fraction'] < weight  # Or nothing was tested.


@every_method
def test_gradients_equal_differences_of_loops(name):
  episodes, outputs = _batch(name)
  _, _, gradients = _run(name, episodes, outputs)
  loss = _loops(name)[1]
  prompts = _reference(name, episodes, outputs)
  shape = episodes.mask.shape
  pairs = {'new': gradients.logprobs}
  if METHODS[name].needs_value:
    pairs['new_values'] = gradients.values
  for field, actual in pairs.items():
    expected = loop_algorithms.dense(
      loop_algorithms.gradient(loss, prompts, field, BETA, METHODS[name]),
      'gradient',
      shape,
    )
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert (np.asarray(actual)[~episodes.mask] == 0).all()


@every_method
def test_gradients_through_a_softmax_equal_loops(name):
  episodes, outputs = _batch(name)
  vocab = 3
  rng = np.random.default_rng(1)
  shape = episodes.mask.shape
  tokens = rng.integers(0, vocab, shape)
  logits = rng.normal(size=(*shape, vocab)).astype(np.float32)
  method = METHODS[name]

  def loss(logits):
    logprobs = jnp.take_along_axis(
      jax.nn.log_softmax(logits), tokens[..., None], axis=-1
    )[..., 0]
    targets = method.targets(episodes, BETA)
    current = outputs._replace(logprobs=logprobs)
    return method.loss(current, episodes, targets, BETA).loss_sum

  actual = jax.jit(jax.grad(loss))(logits)
  prompts = _reference(name, episodes, outputs)
  reference = _loops(name)[1]

  def set_logprobs(logits):
    for prompt in prompts:
      for response in prompt:
        for t in range(len(response['new'])):
          row = logits[(*response['at'], t)]
          picked = tokens[(*response['at'], t)]
          response['new'][t] = row[picked] - np.log(np.exp(row).sum())

  set_logprobs(logits.astype(float))
  for prompt in prompts:
    for response in prompt:
      loop_algorithms.hold(response)
  expected = np.zeros(logits.shape)
  for index in np.ndindex(*logits.shape):
    if not episodes.mask[index[:-1]]:
      continue
    both = []
    for step in 1e-6, -1e-6:
      moved = logits.astype(float)
      moved[index] += step
      set_logprobs(moved)
      both.append(reference(prompts, BETA, method)[0])
    expected[index] = (both[0] - both[1]) / 2e-6
  assert np.abs(expected).max() > 0.01
  np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=1e-4)


@every_method
@pytest.mark.parametrize('garbage', [np.nan, np.inf, -np.inf, 1e30])
def test_padding_content_is_ignored(name, garbage):
  dirty = jax.tree.leaves(_run(name, *_batch(name, garbage)))
  clean = jax.tree.leaves(_run(name, *_batch(name, 0.0)))
  for x, y in zip(dirty, clean, strict=True):
    np.testing.assert_array_equal(x, y)
    assert np.isfinite(x).all()


@every_method
def test_padding_length_is_ignored(name):
  def pad(x):
    if np.ndim(x) < 3:
      return x
    fill = False if x.dtype == bool else np.nan
    return np.pad(x, ((0, 0), (0, 0), (0, 3)), constant_values=fill)

  episodes, outputs = _batch(name)
  _, expected, gradients = _run(name, episodes, outputs)
  _, actual, padded = _run(
    name, jax.tree.map(pad, episodes), jax.tree.map(pad, outputs)
  )
  length = episodes.mask.shape[-1]
  for x, y in zip(
    jax.tree.leaves((actual, jax.tree.map(lambda x: x[..., :length], padded))),
    jax.tree.leaves((expected, gradients)),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def _map(function, tree):
  """Maps the arrays of a batch; the length limit is a number."""
  return jax.tree.map(lambda x: function(x) if np.ndim(x) else x, tree)


@every_method
def test_batch_order_is_ignored(name):
  episodes, outputs = _batch(name)
  order = np.roll(np.arange(len(episodes.mask)), 1)
  _, expected, gradients = _run(name, episodes, outputs)
  _, actual, moved = _run(
    name, *_map(lambda x: x[order][:, ::-1], (episodes, outputs))
  )
  for x, y in zip(
    jax.tree.leaves((actual, moved)),
    jax.tree.leaves(
      (expected, jax.tree.map(lambda x: x[order][:, ::-1], gradients))
    ),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@every_method
def test_sums_of_minibatches_add_up_to_the_batch(name):
  episodes, outputs = _batch(name)
  targets, expected, _ = _run(name, episodes, outputs)
  loss = jax.jit(METHODS[name].loss)
  parts = [
    loss(
      *_map(lambda x, b=b: x[b : b + 1], (outputs, episodes, targets)),
      jnp.float32(BETA),
    )
    for b in range(len(episodes.mask))
  ]
  total = jax.tree.map(lambda *x: sum(x), *parts)
  for x, y in zip(
    jax.tree.leaves(total), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@every_method
def test_ratio_is_exactly_1_before_the_first_update(name):
  episodes, _ = _batch(name)
  outputs = algorithm.Outputs(episodes.logprobs, episodes.values)
  _, result, _ = _run(name, episodes, outputs)
  assert result.metric_sums['ratio_deviation'] == 0
  assert result.metric_sums.get('clip_fraction', 0) == 0
  outputs = outputs._replace(logprobs=episodes.logprobs + np.float32(1e-3))
  _, result, _ = _run(name, episodes, outputs)
  deviation = result.metric_sums['ratio_deviation'] / result.weight_sum
  assert float(deviation) == pytest.approx(1e-3, rel=1e-2)


@every_method
def test_advantages_follow_the_scores(name):
  # Better responses get larger advantages, whatever the baseline.
  episodes, outputs = _batch(name)
  best = episodes._replace(scores=episodes.scores.copy())
  best.scores[0, 0] = 1e3
  before, _, _ = _run(name, episodes, outputs)
  after, _, _ = _run(name, best, outputs)
  last = int(episodes.mask[0, 0].sum()) - 1
  assert after.advantages[0, 0, last] > before.advantages[0, 0, last]
  assert after.advantages[0, 0, last] > 0


@every_method
def test_targets_are_constants(name):
  episodes, _ = _batch(name, garbage=0.0)

  def total(logprobs):
    moved = episodes._replace(logprobs=logprobs)
    return jnp.sum(METHODS[name].targets(moved, BETA).advantages)

  gradient = jax.jit(jax.grad(total))(episodes.logprobs)
  assert (np.asarray(gradient) == 0).all()


@every_method
def test_an_empty_batch_weighs_nothing(name):
  episodes, outputs = _batch(name)
  episodes = episodes._replace(mask=np.zeros_like(episodes.mask))
  targets, result, gradients = _run(name, episodes, outputs)
  for x in jax.tree.leaves((targets, result, gradients)):
    assert (np.asarray(x) == 0).all()


@every_method
def test_an_extreme_ratio_leaves_the_gradient_finite(name):
  episodes, outputs = _batch(name)
  for distance in 200.0, -200.0:
    moved = outputs._replace(
      logprobs=episodes.logprobs + np.float32(distance),
    )
    _, result, gradients = _run(name, episodes, moved)
    for x in jax.tree.leaves((result, gradients)):
      assert np.isfinite(x).all()


@every_method
def test_algorithms_keep_the_protocol(name):
  method = METHODS[name]
  assert isinstance(method, algorithm.Algorithm)
  assert method.epochs >= 1
  assert method.minibatches >= 1
  assert method.min_samples >= 1
  assert method.kl_estimator in ('k1', 'k2', 'k3')


def test_defaults_are_those_of_the_papers():
  # Runs of which the gin files set nothing else rest on them.
  assert reinforce.Reinforce() == reinforce.Reinforce(1.0, False, 'sum', False)
  # arXiv:1707.06347, section 6.1, of the clip and of λ.
  assert ppo.Ppo() == ppo.Ppo(
    clip_ratio=0.2,
    value_clip=0.2,
    value_coefficient=0.5,
    gamma=1.0,
    gae_lambda=0.95,
    clip_ratio_high=None,
    aggregation='token',
    mask_truncated=False,
    epochs=4,
    minibatches=1,
  )
  # arXiv:2402.03300, section 4.2: one update per rollout.
  assert grpo.Grpo() == grpo.Grpo(
    clip_ratio=0.2,
    clip_ratio_high=None,
    ratio='token',
    surrogate='clip',
    aggregation='sequence',
    normalize='group',
    epsilon=1e-4,
    kl_estimator='k3',
    mask_truncated=False,
    epochs=1,
    minibatches=1,
  )
  for one in reinforce.Reinforce(), rloo.Rloo():
    assert (one.aggregation, one.mask_truncated) == ('sum', False)
  for one in reinforce.Reinforce(), rloo.Rloo():
    assert one.epochs == one.minibatches == 1
  assert [METHODS[name].min_samples for name in ('reinforce', 'ppo')] == [1, 1]


@pytest.mark.parametrize('kl_beta', [0, 0.05, 1])
def test_kl_beta_between_0_and_1_is_fine(kl_beta):
  algorithm.check_kl_beta(kl_beta)


@pytest.mark.parametrize(
  'kl_beta', [-0.01, 1.5, float('nan'), float('inf'), '0.1', None, True]
)
def test_kl_beta_out_of_bounds(kl_beta):
  with pytest.raises(errors.ConfigError, match=r'KL_BETA is .* from 0 to 1'):
    algorithm.check_kl_beta(kl_beta)


def test_adaptive_kl_cannot_start_at_0():
  algorithm.check_kl_beta(0.1, is_adaptive=True)
  with pytest.raises(errors.ConfigError, match='KL_BETA is 0'):
    algorithm.check_kl_beta(0.0, is_adaptive=True)


@pytest.mark.parametrize('name', ['rloo', 'grpo'])
def test_group_algorithms_need_a_group(name):
  method = METHODS[name]
  algorithm.check_algorithm(method, 2)
  with pytest.raises(
    errors.ConfigError, match=f'NUM_SAMPLES is 1, but {type(method).__name__} '
  ):
    algorithm.check_algorithm(method, 1)


@pytest.mark.parametrize('num_samples', [0, 1.5, None, True])
def test_num_samples_must_be_a_whole_number(num_samples):
  with pytest.raises(errors.ConfigError, match='NUM_SAMPLES'):
    algorithm.check_algorithm(METHODS['reinforce'], num_samples)
  algorithm.check_algorithm(METHODS['reinforce'], 1)


class _Half:
  """An algorithm of one's own that is not finished."""

  needs_value = False
  epochs = 1
  minibatches = 1
  loss = 'a string'

  def targets(self, episodes, kl_beta):
    raise NotImplementedError


@pytest.mark.parametrize(
  ('given', 'wanted'),
  [
    (_Half(), 'algorithm _Half has no min_samples, kl_estimator.*needs_value'),
    ('ppo', "ALGORITHM is 'ppo', which is not an algorithm.*gin/rl/ppo.gin"),
    (None, 'ALGORITHM is None'),
    (3, 'ALGORITHM is 3'),
    (object(), 'ALGORITHM is object'),
    (reinforce.Reinforce, r'ALGORITHM is the class Reinforce.*with the brack'),
    (len, 'ALGORITHM is builtin_function_or_method'),
  ],
)
def test_what_is_no_algorithm_is_named(given, wanted):
  with pytest.raises(errors.ConfigError, match=wanted):
    algorithm.check_algorithm(given, 1)


@pytest.mark.parametrize(
  ('fields', 'wanted'),
  [
    ({}, '_Half.loss must be a function'),
    ({'loss': len, 'epochs': 0}, '_Half.epochs is 0'),
    ({'loss': len, 'minibatches': 1.5}, '_Half.minibatches is 1.5'),
    ({'loss': len, 'min_samples': '1'}, "_Half.min_samples is '1'"),
    ({'loss': len, 'needs_value': 'yes'}, "_Half.needs_value is 'yes'"),
    (
      {'loss': len, 'kl_estimator': 'k4'},
      "kl_estimator is 'k4'.*'k1', 'k2', 'k3'",
    ),
  ],
)
def test_members_of_another_type_are_named(fields, wanted):
  half = _Half()
  for name, value in (
    {'min_samples': 1, 'kl_estimator': 'k1'} | fields
  ).items():
    setattr(half, name, value)
  with pytest.raises(errors.ConfigError, match=wanted):
    algorithm.check_algorithm(half, 1)


def test_an_algorithm_of_ones_own_passes():
  half = _Half()
  half.loss, half.min_samples, half.kl_estimator = len, 1, 'k1'
  algorithm.check_algorithm(half, 1)
