"""An RL iteration, built as `train_policy` builds it."""

from collections.abc import Mapping
import dataclasses
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from perlhf_jax.benchmark import setting as setting_lib
from perlhf_jax.benchmark import timing
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import reward_model
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import reward_sources
from perlhf_jax.rl import roles as roles_lib
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import shared_backbone
from perlhf_jax.rl import step as step_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.training import compiled_step

# The parts of an iteration, in order. If a rollout has one update, the update
# computes the values, and there is no part `value`.
PARTS = ('sampling', 'reward', 'reference', 'value', 'learning')

# The time of a step does not depend on it.
_KL_BETA = 0.05


class PolicyPrograms:
  """A whole RL iteration, its parts, and the sampler without early stop."""

  def __init__(
    self,
    start: loaded_model.LoadedModel,
    setting: setting_lib.Setting,
    algorithm: algorithm_lib.Algorithm,
    sampling: sampler.SamplingConfig,
    reward: tuple[reward_model.RewardModel, Mapping[str, Any]],
    prompts: typing.Batch,
  ):
    """Prepares the programs, and makes the samples that some of them need.

    Args:
      start: the initial model, with weights.
      setting: how to tune it.
      algorithm: the RL algorithm.
      sampling: how to sample.
      reward: the result of `RewardPrograms.trained`.
      prompts: the batch, on the mesh.
    """
    mesh, seed = setting.mesh, setting.seed
    self._sampling, self._mesh, self._seed = sampling, mesh, seed
    self._prompts = prompts
    roles = roles_lib.make_roles(
      start, setting.lora, mesh, seed, needs_value=algorithm.needs_value
    )
    self._roles = roles = _with_reward_model(roles, *reward)
    self._scoring = reward_sources.RewardSources().scoring(
      start.vocabulary, mesh
    )
    settings = settings_lib.Settings(algorithm, sampling, _KL_BETA, seed=seed)
    self._asks_value = algorithm.needs_value and not settings.has_one_update
    self._step = step_lib.Step(
      roles.models,
      self._scoring,
      settings,
      mesh,
      trainable=roles.trainable,
      trainable_shardings=roles.trainable_shardings,
      optimizer_configs=dict.fromkeys(roles.trainable, setting.optimizer),
      train_steps=setting_lib.TRAIN_STEPS,
    )
    self._state = self._step.create(roles.trainable)
    self._held_bytes = tree_paths.count_bytes((self._state, roles.frozen))
    rollout, trainable = self._step.rollout, self._state.trainable
    self._samples = rollout.sample(
      trainable['policy'], roles.frozen, 0, prompts
    )
    assessed = rollout.assess(
      trainable['value'] if self._asks_value else None,
      roles.frozen,
      self._samples,
    )
    self._experience = assessed.replace(scores=self._scoring(assessed))

  def calls(self) -> Mapping[str, timing.Call]:
    """Returns the algorithm's parts, the iteration, and the sampler."""
    reward = self._assessment(reference=None)
    calls = {
      'sampling': self._sampler(early_stop=True),
      'reward': lambda repeat: self._scoring(reward(repeat)),
      'reference': self._assessment(rewards=()),
      'learning': self._learn,
      'rl_iteration': self._iterate,
      'sampling_to_the_end': self._sampler(early_stop=False),
    }
    if self._asks_value:
      calls['value'] = self._assessment(
        with_value=True, reference=None, rewards=()
      )
    return calls

  def figures(self, measured: Mapping[str, timing.Measured]) -> dict[str, Any]:
    """Returns the results of the iteration and of the sampler.

    The share of a part is of the sum of all parts. The whole iteration can take
    less than the sum, because one program runs all models there.
    """
    parts = {name: measured[name] for name in PARTS if name in measured}
    total = sum(part.seconds for part in parts.values())
    iteration, turns = measured['rl_iteration'], _turns(measured['sampling'])
    return {
      'rl_iteration': {
        'seconds': iteration.seconds,
        **iteration.rates(turns),
        'step_memory_bytes': self._step.memory_bytes,
        'held_bytes': self._held_bytes,
        'trainable_fraction': self._roles.trainable_fraction,
        'parts': {
          name: {
            'seconds': part.seconds,
            'share': part.seconds / total,
            **part.rates(turns),
          }
          for name, part in parts.items()
        },
      },
      'sampler': {
        'early_stop': _sampler_figures(measured['sampling']),
        'no_early_stop': _sampler_figures(measured['sampling_to_the_end']),
      },
    }

  @property
  def _backbone(self):
    return shared_backbone.backbone_of(self._roles.frozen)

  def _sampler(self, *, early_stop: bool) -> timing.Call:
    """Returns a call of `step.sample` that also returns the number of steps."""
    model = self._roles.models.policy

    def sample(policy, backbone, number, batch):
      prompts = prompts_lib.of_batch(batch)
      rng = jax.random.fold_in(jax.random.key(self._seed), number)
      return sampler.sample(
        model,
        shared_backbone.role_variables(backbone, policy),
        prompts,
        jax.random.split(rng, len(prompts)),
        self._sampling,
        early_stop=early_stop,
      )

    compiled = compiled_step.CompiledStep(
      sample,
      self._mesh,
      name='sampling' if early_stop else 'sampling without early stop',
    )

    def call(repeat):
      policy = self._state.trainable['policy']
      number = jnp.asarray(repeat, jnp.int32)
      return compiled(policy, self._backbone, number, self._prompts)

    return call

  def _assessment(self, *, with_value=False, **left_out) -> timing.Call:
    """Returns a call of `step.assess` without some of the models."""
    models = dataclasses.replace(self._roles.models, **left_out)
    rollout = step_lib.Rollout(models, self._sampling, self._seed, self._mesh)

    def call(repeat):
      del repeat
      value = self._state.trainable['value'] if with_value else None
      return rollout.assess(value, self._roles.frozen, self._samples)

    return call

  def _learn(self, repeat):
    del repeat
    self._state, metrics = self._step.learning(
      self._state, self._backbone, self._experience
    )
    return metrics

  def _iterate(self, repeat):
    del repeat
    self._state, metrics = self._step(
      self._state, self._roles.frozen, self._prompts
    )
    return metrics


def _with_reward_model(
  roles: roles_lib.Roles,
  model: reward_model.RewardModel,
  variables: Mapping[str, Any],
) -> roles_lib.Roles:
  """Adds a reward model that is not from a checkpoint."""
  frozen = {**roles.frozen, 'rewards': (variables,)}
  trained = tree_paths.count_parameters(roles.trainable)
  return dataclasses.replace(
    roles,
    models=dataclasses.replace(roles.models, rewards=(model,)),
    frozen=frozen,
    trainable_fraction=trained
    / (trained + tree_paths.count_parameters(frozen)),
  )


def _turns(measured: timing.Measured) -> float:
  """Returns the turns of the sampler's loop, which excludes the first step."""
  steps = [int(each.result.num_steps) for each in measured.timings]
  return statistics.median(steps) - 1


def _sampler_figures(measured: timing.Measured) -> dict[str, float]:
  """Returns medians; real tokens are those up to and including EOS."""
  timings, turns = measured.timings, _turns(measured)
  tokens = [int(jnp.sum(t.result.mask)) for t in timings]
  responses = timings[0].result.mask[..., 0].size
  read = measured.cost.bytes_per_turn
  return {
    'seconds': measured.seconds,
    'tokens_per_second': statistics.median(
      count / timing.seconds
      for count, timing in zip(tokens, timings, strict=True)
    ),
    'num_steps': turns + 1,
    'response_length': statistics.median(tokens) / responses,
    **measured.rates(turns),
    'bytes_per_step': read,
    'memory_share': measured.machine.memory_share(
      (turns + 1) * read, measured.seconds
    ),
  }
