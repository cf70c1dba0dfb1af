"""From assessed samples to an update of policy and value model."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import kl_controller
from perlhf_jax.rl import rewards
from perlhf_jax.rl import rollout
from perlhf_jax.rl import state as state_lib
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Learner:
  """How samples are learned from.

  Attributes:
    models: the modules.
    algorithm: the loss, and what it learns towards.
    optimizer: over `{'policy', 'value'}`.
    schedule: of the policy's learning rate, for reporting.
    shaping: what happens to scores before they are rewards.
    temperature: of the sampling.
    controller: adapts β to a target KL; None to keep it.
    seed: of the order of minibatches.
    accumulation_steps: parts in which a minibatch is differentiated.
  """

  models: rollout.Models
  algorithm: algorithm_lib.Algorithm
  optimizer: optax.GradientTransformation
  schedule: Callable[[Any], Any]
  shaping: rewards.RewardShaping
  temperature: float
  controller: kl_controller.AdaptiveKl | None = None
  seed: int = 0
  accumulation_steps: int = 1

  def learn(
    self,
    state: state_lib.PolicyState,
    frozen: Mapping[str, Any],
    samples: typing.Batch,
  ) -> tuple[state_lib.PolicyState, dict[str, jax.Array]]:
    """Makes all updates that one rollout is good for, as a pure function.

    Args:
      state: before.
      frozen: `params`, the backbone.
      samples: of `rollout.assess`, with `scores` `[batch, responses]`.

    Returns:
      The state after, and scalar metrics.
    """
    mask = samples['response_mask']
    has_eos = rollout.has_eos(samples['response_tokens'], mask)
    shaped, moments = rewards.shape_scores(
      self.shaping, samples['scores'], mask, has_eos, state.reward_moments
    )
    episodes = algorithm_lib.Episodes(
      mask=mask,
      logprobs=samples['logprobs'],
      ref_logprobs=samples['ref_logprobs'],
      values=samples.get('values'),
      scores=shaped,
    )
    targets = self.algorithm.targets(episodes, state.kl_beta)
    experience = prompts_lib.features_of(samples)
    experience['response_tokens'] = samples['response_tokens']
    experience['episodes'] = episodes
    experience['targets'] = targets
    trained, metrics = self._update(state, frozen, experience)

    # By the estimator that is trained on.
    kl = kl_lib.sequence_sums(
      algorithm_lib.token_kl(self.algorithm.kl_estimator, episodes), mask
    )
    mean_kl, kl_error = kl_lib.mean_and_standard_error(
      kl, algorithm_lib.has_tokens(mask)
    )
    metrics.update(
      score=jnp.mean(samples['scores']),
      score_std=jnp.std(samples['scores']),
      kl=mean_kl,
      kl_standard_error=kl_error,
      kl_beta=state.kl_beta,
      objective=jnp.mean((1 - state.kl_beta) * shaped - state.kl_beta * kl),
      entropy=-masking.masked_mean(episodes.logprobs, mask),
      response_length=jnp.mean(jnp.sum(mask, axis=-1, dtype=jnp.float32)),
      truncated=1 - jnp.mean(has_eos, dtype=jnp.float32),
    )
    if targets.returns is not None:
      metrics['explained_variance'] = _explained_variance(episodes, targets)
    was_skipped = metrics.pop('skipped') > 0
    skipped_in_a_row = jnp.where(was_skipped, state.skipped_in_a_row + 1, 0)
    skipped = state.skipped + was_skipped.astype(jnp.int32)
    metrics.update(
      skipped=skipped.astype(jnp.float32),
      skipped_in_a_row=skipped_in_a_row.astype(jnp.float32),
    )
    kl_beta = state.kl_beta
    if self.controller is not None:
      kl_beta = self.controller.update(kl_beta, metrics['kl'], kl.size)

    def keep(new, old):
      # What made a step unusable must not outlive it.
      return jnp.where(was_skipped, old, new)

    state = state_lib.PolicyState(
      step=state.step + 1,
      trainable=trained.trainable,
      opt_state=trained.opt_state,
      kl_beta=keep(kl_beta, state.kl_beta),
      reward_moments=jax.tree.map(keep, moments, state.reward_moments),
      skipped=skipped,
      skipped_in_a_row=skipped_in_a_row,
    )
    return state, metrics

  def _loss(self, trainable, frozen, batch, rng):
    del rng  # No dropout: the first ratio is 1.
    arguments = prompts_lib.of_batch(batch), batch['response_tokens']
    logprobs = policy_lib.response_logprobs(
      self.models.policy,
      rollout.role_variables(frozen, trainable['policy']),
      *arguments,
      temperature=self.temperature,
    )
    values = None
    if 'value' in trainable:
      values = self.models.value.values(
        rollout.role_variables(frozen, trainable['value']), *arguments
      )
    return self.algorithm.loss(
      algorithm_lib.Outputs(logprobs, values),
      batch['episodes'],
      batch['targets'],
      frozen['kl_beta'],
    )

  def _update(self, state, frozen, experience):
    """Makes `epochs * minibatches` updates; returns state and metrics."""
    algorithm = self.algorithm
    update = train_step.make_train_step(
      self._loss,
      self.optimizer,
      self.schedule,
      seed=self.seed,
      accumulation_steps=self.accumulation_steps,
      skip_nonfinite=True,
    )
    frozen = {**frozen, 'kl_beta': state.kl_beta}
    updates = algorithm.epochs * algorithm.minibatches
    trained = train_state.TrainState(
      state.step * updates, state.trainable, state.opt_state
    )
    if updates == 1:
      return update(trained, frozen, experience)

    batch = len(experience['prompt_tokens'])
    rng = jax.random.fold_in(jax.random.key(self.seed), state.step)
    orders = jax.vmap(lambda rng: jax.random.permutation(rng, batch))(
      jax.random.split(rng, algorithm.epochs)
    )

    def body(trained, rows):
      part = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), experience)
      return update(trained, frozen, part)

    trained, metrics = jax.lax.scan(body, trained, orders.reshape(updates, -1))
    first_ratio = metrics['ratio_deviation'][0]
    skipped = jnp.max(metrics['skipped'])
    metrics = {name: jnp.mean(value) for name, value in metrics.items()}
    return trained, {
      **metrics,
      'ratio_deviation': first_ratio,
      'skipped': skipped,
    }


def _explained_variance(episodes, targets) -> jax.Array:
  """Share of the variance of the returns that the values explain."""
  mask = episodes.mask
  error = targets.returns - episodes.values
  mean = masking.masked_mean(targets.returns, mask)
  residual = masking.masked_mean(
    jnp.square(error - masking.masked_mean(error, mask)), mask
  )
  total = masking.masked_mean(jnp.square(targets.returns - mean), mask)
  return 1 - residual / jnp.maximum(total, 1e-8)
