"""One update, as a pure function of state and batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from perlhf_jax.core import typing
from perlhf_jax.training import train_state as train_state_lib


class LossOutput(NamedTuple):
  """Sums over a batch, so that parts of a batch can be added exactly.

  Attributes:
    loss_sum: loss to differentiate, before division by `weight_sum`.
    weight_sum: divisor of the sums (number of tokens, pairs or examples).
    metric_sums: further sums, reported as means with the same divisor.
  """

  loss_sum: jax.Array
  weight_sum: jax.Array
  metric_sums: Mapping[str, jax.Array]


# (trainable, frozen, batch, dropout rng or None) -> LossOutput
LossFn = Callable[
  [Mapping[str, Any], Mapping[str, Any], typing.PyTree, jax.Array | None],
  LossOutput,
]
# Same arguments -> (gradients of `loss_sum` by trainable, LossOutput)
Differentiate = Callable[
  [Mapping[str, Any], Mapping[str, Any], typing.PyTree, jax.Array | None],
  tuple[Mapping[str, Any], LossOutput],
]
TrainStep = Callable[
  [train_state_lib.TrainState, Mapping[str, Any], typing.PyTree],
  tuple[train_state_lib.TrainState, dict[str, jax.Array]],
]


def gradients_of(loss_fn: LossFn) -> Differentiate:
  """Returns a function that differentiates a loss with `jax.grad`."""

  def differentiate(trainable, frozen, batch, rng):
    def loss(trainable):
      output = loss_fn(trainable, frozen, batch, rng)
      return output.loss_sum, output

    return jax.grad(loss, has_aux=True)(trainable)

  return differentiate


def make_train_step(
  differentiate: Differentiate,
  optimizer: optax.GradientTransformation,
  schedule: Callable[[jax.Array], jax.Array],
  *,
  seed: int,
  accumulation_steps: int = 1,
  skip_nonfinite: bool = False,
) -> TrainStep:
  """Returns `(state, frozen, batch) -> (state, metrics)`.

  Only `state.trainable` is differentiated; gradients of frozen weights are
  never computed. With several `accumulation_steps` the update equals the
  update of the whole batch, whatever the weights of the parts. A batch is a
  pytree of arrays `[batch, …]`.

  Args:
    differentiate: returns the gradients and the loss of a batch, as sums;
      usually `gradients_of` a loss.
    optimizer: optimizer with the learning rate of `schedule`.
    schedule: learning rate to report.
    seed: seed of dropout; a step's key is a function of seed and step alone.
    accumulation_steps: number of gradient accumulation steps per batch.
    skip_nonfinite: whether a step whose loss or gradient is not finite leaves
      weights and optimizer unchanged; the metric `skipped` is then 1.
  """

  def accumulate(trainable, frozen, batch, rng):
    if accumulation_steps == 1:
      return differentiate(trainable, frozen, batch, rng)

    def split(x):
      # Part i takes rows i, i + parts, …, so that devices keep their own rows.
      parts = x.reshape(-1, accumulation_steps, *x.shape[1:])
      return jnp.swapaxes(parts, 0, 1)

    def body(total, inputs):
      part, part_rng = inputs
      return jax.tree.map(
        jnp.add, total, differentiate(trainable, frozen, part, part_rng)
      ), None

    parts = jax.tree.map(split, batch)
    rngs = jax.random.split(rng, accumulation_steps)
    first = jax.tree.map(lambda x: x[0], (parts, rngs))
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(differentiate, trainable, frozen, *first),
    )
    total, _ = jax.lax.scan(body, zeros, (parts, rngs))
    return total

  def train_step(state, frozen, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    gradients, output = accumulate(state.trainable, frozen, batch, rng)
    weight = jnp.maximum(output.weight_sum, 1e-9)
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.trainable
    )
    metrics = {
      'loss': output.loss_sum / weight,
      **{k: v / weight for k, v in output.metric_sums.items()},
      'grad_norm': optax.global_norm(gradients),
      'learning_rate': schedule(state.step),
    }
    updated = optax.apply_updates(state.trainable, updates), opt_state
    if skip_nonfinite:
      finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(
        metrics['grad_norm']
      )
      updated = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        updated,
        (state.trainable, state.opt_state),
      )
      metrics['skipped'] = 1.0 - finite.astype(jnp.float32)
    state = train_state_lib.TrainState(state.step + 1, *updated)
    return state, metrics

  return train_step
