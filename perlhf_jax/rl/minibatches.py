"""Several updates from one rollout, over minibatches in random order."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int

from perlhf_jax.core import typing
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step

# Folded into the seed before the step, so that the order has random numbers of
# its own. Sampling folds in only the step.
_ORDER_STREAM = 0x6F726465


def orders(
  seed: int, step: Int[typing.Array, ''] | int, epochs: int, batch: int
) -> Int[jax.Array, 'epochs batch']:
  """Draws the order in which each epoch of a step visits a rollout's rows.

  Args:
    seed: the run's seed.
    step: int32 scalar.
    epochs: passes over the rollout.
    batch: rows.
  """
  rng = jax.random.fold_in(jax.random.key(seed), _ORDER_STREAM)
  rngs = jax.random.split(jax.random.fold_in(rng, step), epochs)
  return jax.vmap(lambda rng: jax.random.permutation(rng, batch))(rngs)


def make_updates(
  update: train_step.TrainStep,
  trained: train_state.TrainState,
  frozen: Mapping[str, Any],
  experience: typing.PyTree,
  rows: Int[jax.Array, 'updates minibatch'],
) -> tuple[train_state.TrainState, dict[str, jax.Array]]:
  """Makes one update per minibatch, in order.

  Args:
    update: makes one update.
    trained: the state before.
    frozen: the frozen weights for `update`.
    experience: pytree of arrays `[batch, …]`.
    rows: the rows of `experience` in each minibatch.

  Returns:
    The state after, and the mean of each metric over the updates, except:
    `ratio_deviation` is that of the first update, the only one that sees the
    policy that sampled, and `skipped` is the maximum.
  """

  def body(trained, rows):
    part = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), experience)
    return update(trained, frozen, part)

  trained, metrics = jax.lax.scan(body, trained, rows)
  means = {name: jnp.mean(value) for name, value in metrics.items()}
  return trained, {
    **means,
    'ratio_deviation': metrics['ratio_deviation'][0],
    'skipped': jnp.max(metrics['skipped']),
  }
