"""Gradients of the policy and the value model, one model after the other.

Differentiating both together would keep the activations of both models in
memory at the same time.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import experience as experience_lib
from perlhf_jax.rl import importance
from perlhf_jax.rl import rollout_metrics
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import shared_backbone
from perlhf_jax.training import train_step


def differentiate(
  models: shared_backbone.Models,
  settings: settings_lib.Settings,
  kl_beta: Any,
  trainable: Mapping[str, Any],
  frozen: shared_backbone.Variables,
  experience: experience_lib.Experience,
  rng: jax.Array,
) -> tuple[dict[str, Any], train_step.LossOutput]:
  """Computes the gradients of the loss on a part of a rollout.

  Args:
    models: the modules.
    settings: how to learn.
    kl_beta: β.
    trainable: weights of `policy`, and of `value` if there is one.
    frozen: `params`, the backbone.
    experience: assessed and scored. It has no targets if
      `Settings.has_one_update`; then this pass computes the values for them.
    rng: not used. There is no dropout, so the first ratio is 1.

  Returns:
    Gradients of the sum of losses, structured as `trainable`, and the loss.
  """
  del rng
  algorithm, tokens = settings.algorithm, experience.response_tokens
  source = shared_backbone.PromptSource(
    frozen, experience.prompts, experience.encoding
  )
  policy, gradients, values = trainable['policy'], {}, None
  episodes = experience.episodes(settings.sampling.max_length)
  targets = experience.targets

  def values_of(variables):
    return models.value.values(
      shared_backbone.role_variables(frozen, variables),
      source.of(models.value.backbone, variables),
      tokens,
    )

  def logprobs_of(variables):
    return policy_lib.response_logprobs(
      models.policy,
      shared_backbone.role_variables(frozen, variables),
      source.of(models.policy, variables),
      tokens,
      temperature=settings.sampling.logprob_temperature,
    )

  def loss(logprobs, values):
    logprobs = importance.weigh_gradient(logprobs, experience.importance)
    outputs = algorithm_lib.Outputs(logprobs, values)
    output = algorithm.loss(outputs, episodes, targets, kl_beta)
    return output.loss_sum, output

  if 'value' in trainable:
    values, pull_back = jax.vjp(values_of, trainable['value'])
    if targets is None:
      episodes = episodes._replace(values=jax.lax.stop_gradient(values))
      targets = algorithm.targets(episodes, kl_beta)
    # By the contract of `Algorithm.loss` this gradient does not depend on the
    # log-probabilities, so the rollout's serve.
    by_values, _ = jax.grad(loss, argnums=1, has_aux=True)(
      episodes.logprobs, values
    )
    (by_weights,) = pull_back(by_values)
    # The policy's pass starts only when the value model's activations are free.
    policy, gradients['value'] = jax.lax.optimization_barrier(
      (policy, by_weights)
    )
  elif targets is None:
    targets = algorithm.targets(episodes, kl_beta)
  gradients['policy'], output = jax.grad(
    lambda variables: loss(logprobs_of(variables), values), has_aux=True
  )(policy)
  if experience.targets is None and 'value' in trainable:
    # The caller divides metric sums by the weight.
    described = {
      name: value * output.weight_sum
      for name, value in rollout_metrics.of_values(episodes, targets).items()
    }
    sums = {**output.metric_sums, **described}
    output = output._replace(metric_sums=sums)
  return gradients, output


def check_separable(algorithm: algorithm_lib.Algorithm) -> None:
  """Checks that an algorithm's models can be differentiated one by one.

  Raises:
    ConfigError: the gradient of the loss with respect to the values depends on
      the policy's log-probabilities.
  """
  if not algorithm.needs_value:
    return
  rng = np.random.default_rng(0)
  shape = (4, algorithm.min_samples, 3)
  logprobs, others, ref_logprobs, values = -rng.exponential(size=(4, *shape))
  episodes = algorithm_lib.Episodes(
    mask=np.ones(shape, bool),
    ended=np.ones(shape[:2], bool),
    logprobs=logprobs.astype(np.float32),
    ref_logprobs=ref_logprobs.astype(np.float32),
    values=values.astype(np.float32),
    scores=rng.normal(size=shape[:2]).astype(np.float32),
    max_length=shape[-1],
  )
  kl_beta = 0.1
  targets = algorithm.targets(episodes, kl_beta)

  def by_values(logprobs):
    def loss(values):
      outputs = algorithm_lib.Outputs(logprobs.astype(np.float32), values)
      return algorithm.loss(outputs, episodes, targets, kl_beta).loss_sum

    return jax.grad(loss)(episodes.values * np.float32(1.1))

  if not np.allclose(by_values(logprobs), by_values(others)):
    raise errors.ConfigError(
      f'The gradient of {type(algorithm).__name__}.loss by outputs.values '
      'depends on outputs.logprobs. Policy and value model are differentiated '
      'one after the other: make the loss a sum of a loss of the logprobs and '
      'a loss of the values, and take all other inputs of the first from '
      'targets, or from jax.lax.stop_gradient(outputs.values).'
    )
