"""The programs of reinforcement learning, from roles and settings."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import iteration
from perlhf_jax.rl import kl_controller
from perlhf_jax.rl import learner as learner_lib
from perlhf_jax.rl import programs
from perlhf_jax.rl import rewards as rewards_lib
from perlhf_jax.rl import state as state_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.stages import roles as roles_lib
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_state


class PolicySteps(NamedTuple):
  """The programs of a run.

  Attributes:
    create: compiled, from `Roles.trainable`, which it takes over, to the
      state before the first step.
    shardings: of the state.
    iterate: `(state, frozen, prompts) -> (state, metrics)`.
  """

  create: Callable[[Any], state_lib.PolicyState]
  shardings: state_lib.PolicyState
  iterate: iteration.Iteration


def make_steps(
  roles: roles_lib.Roles,
  scoring: iteration.Scoring,
  mesh: partitioning.LogicalMesh,
  *,
  algorithm: algorithm_lib.Algorithm,
  optimizer_configs: Mapping[str, optimizers.Optimizer],
  sampling: sampler.SamplingConfig,
  train_steps: int,
  kl_beta: float,
  shaping: rewards_lib.RewardShaping | None = None,
  controller: kl_controller.AdaptiveKl | None = None,
  seed: int = 0,
  accumulation_steps: int = 1,
) -> PolicySteps:
  """Prepares the programs of a run; they compile when first called.

  Args:
    roles: models and weights, or their shapes.
    scoring: scores samples.
    mesh: the mesh.
    algorithm: Reinforce, Rloo, Grpo or Ppo.
    optimizer_configs: of `policy`, and of `value` where there is one.
    sampling: how to sample.
    train_steps: rollouts, the length of the schedules.
    kl_beta: β at first.
    shaping: normalisation, clipping and penalties of scores.
    controller: adapts β to a target KL.
    seed: of sampling and of the order of minibatches.
    accumulation_steps: parts in which a minibatch is differentiated.
  """
  updates = train_steps * algorithm.epochs * algorithm.minibatches
  by_role = {
    role: optimizers.make_optimizer(optimizer_configs[role], updates)
    for role in roles.trainable
  }
  optimizer = optimizers.by_name(by_role)
  shardings = state_shardings(roles, by_role, mesh)
  create = jax.jit(
    lambda trainable: state_lib.create(trainable, optimizer, kl_beta),
    donate_argnums=0,  # Or `roles` would hold a second copy to the end.
    out_shardings=shardings,
  )
  learner = learner_lib.Learner(
    models=roles.models,
    algorithm=algorithm,
    optimizer=optimizer,
    schedule=optimizers.make_schedule(optimizer_configs['policy'], updates),
    shaping=shaping or rewards_lib.RewardShaping(),
    temperature=sampling.temperature,
    controller=controller,
    seed=seed,
    accumulation_steps=accumulation_steps,
  )
  iterate = iteration.Iteration(
    programs.RolloutPrograms(roles.models, mesh, sampling, seed),
    scoring,
    learner,
    mesh,
    shardings,
  )
  return PolicySteps(create, shardings, iterate)


def state_shardings(
  roles: roles_lib.Roles,
  by_role: Mapping[str, optax.GradientTransformation],
  mesh: partitioning.LogicalMesh,
) -> state_lib.PolicyState:
  """Returns the sharding of every leaf of the state."""
  whole = partitioning.replicated(mesh)
  return state_lib.PolicyState(
    step=whole,
    trainable=roles.trainable_shardings,
    opt_state={
      role: train_state.state_shardings(
        roles.trainable_shardings[role], roles.trainable[role], optimizer, mesh
      ).opt_state
      for role, optimizer in by_role.items()
    },
    kl_beta=whole,
    reward_moments=rewards_lib.Moments(whole, whole, whole),
    skipped=whole,
    skipped_in_a_row=whole,
  )
