"""A step of reinforcement learning: sample, assess, score, learn.

`Step` compiles and calls the three functions below: `sample`, `assess` and
`learn`. Between `assess` and `learn`, `rl/scoring.py` scores, because Python
reward functions run on the host. `rl/shared_backbone.py` describes the roles.
Every pass is deterministic.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from perlhf_jax.core import typing
from perlhf_jax.data import feature_converters
from perlhf_jax.data import length_buckets
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.rl import experience as experience_lib
from perlhf_jax.rl import gradients
from perlhf_jax.rl import importance
from perlhf_jax.rl import minibatches
from perlhf_jax.rl import rewards
from perlhf_jax.rl import rollout_metrics
from perlhf_jax.rl import scoring as scoring_lib
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import shared_backbone
from perlhf_jax.rl import state as state_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.training import compiled_step
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step

Variables = shared_backbone.Variables
Models = shared_backbone.Models


class Step:
  """Makes a step with three compiled programs.

  Attributes:
    create: jitted function from the trainable weights, which it donates, to the
      state before the first step.
    shardings: the shardings of the state.
    rollout: samples and assesses.
    scoring: scores samples.
    learning: the compiled program of `learn`.
  """

  def __init__(
    self,
    models: Models,
    scoring: scoring_lib.Scoring,
    settings: settings_lib.Settings,
    mesh: partitioning.LogicalMesh,
    *,
    trainable: Mapping[str, Any],
    trainable_shardings: Mapping[str, Any],
    optimizer_configs: Mapping[str, optimizers.Optimizer],
    train_steps: int,
  ):
    """Prepares the programs; each compiles at its first call.

    Args:
      models: the modules.
      scoring: scores samples.
      settings: how to sample and learn.
      mesh: the mesh.
      trainable: `{'policy': …, 'value': …}`, arrays or shapes.
      trainable_shardings: the shardings of `trainable`.
      optimizer_configs: of `policy`, and of `value` if there is one.
      train_steps: steps of the run, which set the length of the schedules.
    """
    updates = train_steps * settings.updates
    by_role = {
      role: optimizers.make_optimizer(optimizer_configs[role], updates)
      for role in trainable
    }
    optimizer = optimizers.by_name(by_role)
    schedule = optimizers.make_schedule(optimizer_configs['policy'], updates)
    self.shardings = state_lib.shardings(
      trainable, trainable_shardings, by_role, mesh
    )
    self.create = jax.jit(
      lambda weights: state_lib.create(weights, optimizer, settings.kl_beta),
      donate_argnums=0,  # Else the caller would keep a second copy.
      out_shardings=self.shardings,
    )
    self.rollout = Rollout(models, settings.sampling, settings.seed, mesh)
    self.scoring = scoring
    self._settings = settings
    self.learning = compiled_step.CompiledStep(
      functools.partial(learn, models, settings, optimizer, schedule),
      mesh,
      name='the update',
      donate_argnums=(0,),
      out_shardings=(self.shardings, partitioning.replicated(mesh)),
    )

  def __call__(
    self, state: state_lib.PolicyState, frozen: Variables, batch: typing.Batch
  ) -> tuple[state_lib.PolicyState, dict[str, jax.Array]]:
    """Makes one step.

    Args:
      state: the state before.
      frozen: see `shared_backbone.Models`.
      batch: prompts.

    Returns:
      The state after, and scalar metrics.

    Raises:
      DataError: a reward function failed; the state is unchanged.
    """
    policy, value = (state.trainable.get(role) for role in ('policy', 'value'))
    if self._settings.has_one_update:
      value = None  # The update computes the same values.
    experience = self.rollout.sample(policy, frozen, state.step, batch)
    experience = self.rollout.assess(value, frozen, experience)
    experience = experience.replace(scores=self.scoring(experience))
    return self.learning(state, shared_backbone.backbone_of(frozen), experience)

  @property
  def newly_compiled(self) -> bool:
    """Whether the last call compiled."""
    return self.rollout.newly_compiled or self.learning.newly_compiled

  @property
  def memory_bytes(self) -> int:
    """The memory per device of the largest program."""
    return max(self.rollout.memory_bytes, self.learning.memory_bytes)


class Rollout:
  """Samples responses and assesses them with the other roles.

  Attributes:
    sampling: the compiled program of `sample`, which also returns the length of
      the longest response.
    assessment: the compiled program of `assess`.
  """

  def __init__(
    self,
    models: Models,
    config: sampler.SamplingConfig,
    seed: int,
    mesh: partitioning.LogicalMesh,
  ):
    """Prepares the programs; each compiles at its first call.

    Args:
      models: the modules.
      config: how to sample.
      seed: seed of the sampling.
      mesh: the mesh.
    """
    rows, whole = (
      partitioning.batch_sharding(mesh),
      partitioning.replicated(mesh),
    )

    def sample_and_measure(policy, frozen, number, batch):
      rng = jax.random.fold_in(jax.random.key(seed), number)
      experience = sample(models, config, policy, frozen, rng, batch)
      lengths = jnp.sum(experience.response_mask, axis=-1)
      return experience, jnp.max(lengths)

    self.sampling = compiled_step.CompiledStep(
      sample_and_measure, mesh, name='sampling', out_shardings=(rows, whole)
    )
    self.assessment = compiled_step.CompiledStep(
      functools.partial(assess, models, config),
      mesh,
      name='assessment',
      out_shardings=rows,
    )

  def __call__(
    self,
    trainable: Mapping[str, Any],
    frozen: Variables,
    number: Any,
    batch: typing.Batch,
  ) -> experience_lib.Experience:
    """Samples responses to a batch of prompts and assesses them.

    Args:
      trainable: `policy`, and `value` to run the value model too.
      frozen: see `shared_backbone.Models`.
      number: see `sample`.
      batch: prompts.
    """
    experience = self.sample(trainable['policy'], frozen, number, batch)
    return self.assess(trainable.get('value'), frozen, experience)

  def sample(
    self, policy: Variables, frozen: Variables, number: Any, batch: typing.Batch
  ) -> experience_lib.Experience:
    """Samples responses, and cuts padding that no response needs.

    The cost of every later pass grows with the length. Only the length of the
    longest response is copied to the host.

    Args:
      policy: variables of the policy.
      frozen: see `shared_backbone.Models`.
      number: int32 scalar; each number gives a batch other randomness.
      batch: prompts. With EXAMPLE_ROWS, the randomness of a response depends on
        its prompt's row, and not on its place in the batch.

    Returns:
      The result of the function `sample`, cut to a length bucket.
    """
    number = jnp.asarray(number, jnp.int32)
    experience, longest = self.sampling(
      policy, shared_backbone.backbone_of(frozen), number, batch
    )
    limit = experience.response_tokens.shape[-1]
    length = length_buckets.halved_length(int(longest), limit)
    return experience.trimmed(length)

  def assess(
    self,
    value: Variables | None,
    frozen: Variables,
    experience: experience_lib.Experience,
  ) -> experience_lib.Experience:
    """Adds the results of the function `assess` to samples."""
    assessment = self.assessment(value, frozen, experience)
    return experience.replace(**assessment._asdict())

  @property
  def newly_compiled(self) -> bool:
    """Whether the last call compiled."""
    return self.sampling.newly_compiled or self.assessment.newly_compiled

  @property
  def memory_bytes(self) -> int:
    """The memory per device of the larger program."""
    return max(self.sampling.memory_bytes, self.assessment.memory_bytes)


def sample(
  models: Models,
  config: sampler.SamplingConfig,
  policy: Variables,
  frozen: Variables,
  rng: jax.Array,
  batch: typing.Batch,
) -> experience_lib.Experience:
  """Samples responses from the policy.

  Args:
    models: the modules.
    config: how to sample.
    policy: variables of the policy.
    frozen: see `shared_backbone.Models`.
    rng: the randomness of this batch.
    batch: prompts; see `models.prompts.of_batch`.

  Returns:
    Prompts, responses and their log-probabilities.
  """
  prompts = prompts_lib.of_batch(batch)
  rows = batch.get(feature_converters.EXAMPLE_ROWS)
  if rows is not None:
    keys = jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows)
  else:
    keys = jax.random.split(rng, len(prompts))
  source = shared_backbone.PromptSource(frozen, prompts)
  samples = sampler.sample(
    models.policy,
    shared_backbone.role_variables(frozen, policy),
    source.of(models.policy, policy),
    keys,
    config,
  )
  return experience_lib.Experience(
    prompts=prompts,
    example_mask=batch['example_mask'],
    response_tokens=samples.tokens,
    response_mask=samples.mask,
    logprobs=samples.logprobs,
    encoding=source.encoding,
  )


def assess(
  models: Models,
  config: sampler.SamplingConfig,
  value: Variables | None,
  frozen: Variables,
  experience: experience_lib.Experience,
) -> experience_lib.Assessment:
  """Runs the reference, the value model and the reward models on samples.

  Args:
    models: the modules.
    config: how responses were sampled. The reference uses the same temperature,
      so that the KL compares the distributions that policy and reference would
      sample from.
    value: variables of the value model; None to skip values.
    frozen: see `shared_backbone.Models`.
    experience: the result of `sample`.
  """
  tokens = experience.response_tokens
  source = shared_backbone.PromptSource(
    frozen, experience.prompts, experience.encoding
  )
  ref_logprobs = values = model_scores = None
  if models.reference is not None:
    ref_logprobs = policy_lib.response_logprobs(
      models.reference,
      shared_backbone.role_variables(frozen, {}),
      source.of(models.reference, {}),
      tokens,
      temperature=config.logprob_temperature,
    )
  if value is not None:
    values = models.value.values(
      shared_backbone.role_variables(frozen, value),
      source.of(models.value.backbone, value),
      tokens,
    )
  if models.rewards:
    ended = experience_lib.end_with_eos(tokens, experience.response_mask)
    model_scores = jnp.stack(
      [
        model.scores(
          shared_backbone.role_variables(frozen, variables),
          source.of(model.backbone, variables),
          *ended,
        )
        for model, variables in zip(
          models.rewards, frozen['rewards'], strict=True
        )
      ],
      axis=-1,
    )
  return experience_lib.Assessment(ref_logprobs, values, model_scores)


def learn(
  models: Models,
  settings: settings_lib.Settings,
  optimizer: optax.GradientTransformation,
  schedule: Callable[[Any], Any],
  state: state_lib.PolicyState,
  frozen: Variables,
  experience: experience_lib.Experience,
) -> tuple[state_lib.PolicyState, dict[str, jax.Array]]:
  """Makes all updates from one rollout; a pure function.

  Args:
    models: the modules.
    settings: how to learn.
    optimizer: over `{'policy', 'value'}`.
    schedule: the policy's learning rate schedule, for metrics.
    state: the state before.
    frozen: `params`, the backbone.
    experience: assessed and scored. It has no values if the update computes
      them (`Settings.has_one_update`).

  Returns:
    The state after, and scalar metrics.
  """
  algorithm, kl_beta = settings.algorithm, state.kl_beta
  scores, mask = experience.scores, experience.response_mask
  has_eos = experience_lib.has_eos(experience.response_tokens, mask)
  shaped, moments = rewards.shape_scores(
    settings.shaping, scores, mask, has_eos, state.reward_moments
  )
  experience, mismatch = experience.replace(scores=shaped), {}
  if settings.importance_cap is not None:
    experience, mismatch = importance.correct(
      models,
      state.trainable['policy'],
      frozen,
      experience,
      temperature=settings.sampling.logprob_temperature,
      cap=settings.importance_cap,
    )
  episodes = experience.episodes(settings.sampling.max_length)
  if not settings.has_one_update:
    targets = algorithm.targets(episodes, kl_beta)
    experience = experience.replace(targets=targets)
  update = train_step.make_train_step(
    functools.partial(gradients.differentiate, models, settings, kl_beta),
    optimizer,
    schedule,
    seed=settings.seed,
    accumulation_steps=settings.accumulation_steps,
    skip_nonfinite=True,
  )
  trained = train_state.TrainState(
    state.step * settings.updates, state.trainable, state.opt_state
  )
  if settings.updates == 1:
    trained, metrics = update(trained, frozen, experience)
  else:
    orders = minibatches.orders(
      settings.seed, state.step, algorithm.epochs, len(scores)
    )
    trained, metrics = minibatches.make_updates(
      update,
      trained,
      frozen,
      experience,
      orders.reshape(settings.updates, -1),
    )
  metrics |= mismatch | rollout_metrics.describe(
    episodes, scores, has_eos, algorithm.kl_estimator, kl_beta
  )
  if experience.targets is not None:
    metrics |= rollout_metrics.of_values(episodes, experience.targets)
  if settings.shaping.normalize:
    metrics['outliers'] = rewards.count_outliers(
      scores, mask, state.reward_moments
    )
  was_skipped = metrics.pop('skipped') > 0
  skipped_in_a_row = jnp.where(was_skipped, state.skipped_in_a_row + 1, 0)
  skipped = state.skipped + was_skipped.astype(jnp.int32)
  metrics.update(
    kl_beta=kl_beta,
    skipped=skipped.astype(jnp.float32),
    skipped_in_a_row=skipped_in_a_row.astype(jnp.float32),
  )
  if settings.controller is not None:
    kl = metrics[f'kl_{algorithm.kl_estimator}']
    kl_beta = settings.controller.update(kl_beta, kl, scores.size)

  def keep(new, old):
    # The scores of a skipped step must not change β or the moments.
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
