import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_roles

from perlhf_jax.core import errors
from perlhf_jax.rl import ppo
from perlhf_jax.rl import scoring
from perlhf_jax.rl import settings
from perlhf_jax.rl import step as step_lib
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning


class _Function:
  """A reward for long responses that can be told to fail."""

  def __init__(self):
    self.fails = False

  def __call__(self, prompts, responses):
    if self.fails:
      raise KeyError('no such answer')
    return [len(response.split()) for response in responses]


@pytest.fixture(scope='module')
def run():
  """A compiled step of PPO, its first state, prompts and `frozen`."""
  rewards_ = [tiny_roles.reward_role(11), tiny_roles.reward_role(12)]
  models, trainable, frozen = tiny_roles.make(rewards_)
  mesh = partitioning.make_mesh()
  function = _Function()
  whole = partitioning.replicated(mesh)
  step = step_lib.Step(
    models,
    scoring.Scoring('min', 1.0, ((function, 1.0),), tiny_roles.decode, mesh),
    settings.Settings(ppo.Ppo(epochs=2), tiny_roles.SAMPLING, 0.1),
    mesh,
    trainable=trainable,
    trainable_shardings=jax.tree.map(lambda _: whole, trainable),
    optimizer_configs=dict.fromkeys(
      trainable, optimizers.Optimizer(name='adamw', learning_rate=1e-2)
    ),
    train_steps=10,
  )
  return step, step.create(trainable), frozen, function


def _copy(tree):
  return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def test_steps_change_the_policy_and_never_the_reference(run):
  step, state, frozen, _ = run
  state = _copy(state)
  batch = tiny_roles.prompts()
  before = jax.tree.map(lambda x: np.array(x, copy=True), frozen)
  samples = step.rollout(state.trainable, frozen, 0, batch)
  first = jax.tree.map(lambda x: np.array(x, copy=True), samples)
  compiled = []
  for number in range(3):
    state, metrics = step(state, frozen, batch)
    compiled.append(step.newly_compiled)
    assert int(state.step) == number + 1
    assert metrics['ratio_deviation'] < 1e-5
  assert compiled == [True, False, False]
  assert step.memory_bytes > 0

  later = step.rollout.assess(state.trainable['value'], frozen, samples)
  np.testing.assert_array_equal(later.ref_logprobs, first.ref_logprobs)
  np.testing.assert_array_equal(later.model_scores, first.model_scores)
  assert (np.asarray(later.values) != first.values).all()
  jax.tree.map(np.testing.assert_array_equal, frozen, before)
  # The policy does not say the same any more.
  again = step.rollout(state.trainable, frozen, 0, batch)
  same = np.asarray(again.response_tokens) == first.response_tokens
  same &= first.response_mask
  changed = np.asarray(again.logprobs) != first.logprobs
  assert same[..., 0].any() and changed[same].all()


def test_the_step_gives_the_randomness(run):
  step, state, frozen, _ = run
  batch = tiny_roles.prompts()
  _, one = step(_copy(state), frozen, batch)
  _, same = step(_copy(state), frozen, batch)
  for name, value in one.items():
    np.testing.assert_array_equal(same[name], value, err_msg=name)
  later = state.replace(step=jnp.int32(1))
  _, other = step(_copy(later), frozen, batch)
  assert other['entropy'] != one['entropy']


def test_the_metric_is_the_combined_score(run):
  step, state, frozen, _ = run
  batch = tiny_roles.prompts()
  samples = step.rollout(state.trainable, frozen, 0, batch)
  models = np.asarray(samples.model_scores).min(axis=-1)
  lengths = np.asarray(samples.response_mask).sum(axis=-1)
  _, metrics = step(_copy(state), frozen, batch)
  np.testing.assert_allclose(
    metrics['score'], (models + lengths).mean(), rtol=1e-5
  )


def test_a_function_that_fails_leaves_the_state_usable(run):
  step, state, frozen, function = run
  state = _copy(state)
  batch = tiny_roles.prompts()
  function.fails = True
  with pytest.raises(errors.DataError, match='_Function raised KeyError'):
    step(state, frozen, batch)
  function.fails = False
  after, _ = step(state, frozen, batch)  # Nothing was donated or changed.
  wanted, _ = step(_copy(run[1]), frozen, batch)
  jax.tree.map(np.testing.assert_array_equal, after, wanted)


def test_a_step_does_not_depend_on_the_padding_of_prompts(run):
  step, state, frozen, _ = run
  batch = tiny_roles.prompts()
  padded = {
    name: jnp.pad(x, ((0, 0), (0, 9))) if name.startswith('prompt') else x
    for name, x in batch.items()
  }
  (_, short), (_, long) = (
    step(_copy(state), frozen, each) for each in (batch, padded)
  )
  for name, value in short.items():
    np.testing.assert_allclose(long[name], value, rtol=1e-5, atol=1e-5)
