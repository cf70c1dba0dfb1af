"""REINFORCE's mean update is the gradient of the expected reward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_roles

from perlhf_jax.rl import reinforce
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import state as state_lib
from perlhf_jax.rl import step
from perlhf_jax.sampling import sampler
from perlhf_jax.training import optimizers

ROLLOUTS, RESPONSES = 2, 128


def test_a_constant_reward_moves_reinforce_by_chance_alone():
  """E[Σ ∇ log π] = 0: the mean of 1024 responses, within 4 standard errors."""
  models, trainable, frozen = tiny_roles.make()
  heads = jax.tree.map(jnp.zeros_like, trainable['value']['heads'])
  trainable['value']['heads'] = heads
  sampling = sampler.SamplingConfig(
    tiny_roles.LENGTH, tiny_roles.SAMPLING.temperature, num_samples=RESPONSES
  )
  rollout = tiny_roles.make_rollout(models, sampling)
  optimizer = optimizers.by_name(
    {'policy': optax.sgd(1.0), 'value': optax.set_to_zero()}
  )
  learn = jax.jit(
    functools.partial(
      step.learn,
      models,
      settings_lib.Settings(reinforce.Reinforce(), sampling, kl_beta=0.0),
      optimizer,
      lambda step: jnp.float32(1),
    )
  )
  state = state_lib.create(trainable, optimizer, 0.0)
  policy = trainable['policy']
  rng = np.random.default_rng(0)
  direction = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), policy
  )

  @jax.jit
  def slopes(samples):
    """How the log-probability of each response grows in the direction."""

    def logprobs(policy):
      outputs = tiny_roles.outputs(
        models, {'params': frozen['params']}, {'policy': policy}, samples
      )
      return jnp.sum(outputs.logprobs * samples.response_mask, axis=-1)

    return jax.jvp(logprobs, (policy,), (direction,))[1]

  constant, biased = [], []
  for number in range(ROLLOUTS):
    samples = rollout(trainable, frozen, number, tiny_roles.prompts())
    slope = np.asarray(slopes(samples))
    for scores, collected in (
      (np.ones(slope.shape), constant),
      (slope > 0, biased),
    ):
      scored = samples.replace(scores=jnp.asarray(scores, jnp.float32))
      after, _ = learn(state, {'params': frozen['params']}, scored)
      moved = jax.tree.map(
        lambda new, old, u: float(jnp.sum((new - old) * u)),
        after.trainable['policy'],
        policy,
        direction,
      )
      collected.append(slope * scores)
      # The update is the mean of score · ∇ log π, seen along the direction.
      error = np.std(slope * scores) / np.sqrt(slope.size)
      np.testing.assert_allclose(
        sum(jax.tree.leaves(moved)), np.mean(slope * scores), atol=0.02 * error
      )

  def deviation(values):
    return np.mean(values) / (np.std(values) / np.sqrt(np.size(values)))

  assert abs(deviation(constant)) < 4
  assert deviation(biased) > 12  # A reward that knows the direction is seen.
