"""Rollouts: responses of the policy, and what the other roles say of them.

Every role is a set of variables over one frozen backbone: the policy and the
value model have adapters, a reward model has adapters and a head, and the
reference is the backbone itself. A role that has `params` of its own (all of
them under full tuning, a reward model with another base) uses those instead.
Every pass here is deterministic.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.sampling import sampler

EOS_ID = 1


@dataclasses.dataclass(frozen=True)
class Models:
  """The modules of the roles; their weights are in trees beside them.

  The `frozen` tree of every function is `{'params': …, 'rewards': (…,)}`: the
  backbone, which is the reference, and what each reward model has beside it.

  Attributes:
    policy: backbone with adapters; bare under full tuning.
    value: value model; None for algorithms without a baseline.
    reference: the bare backbone; None to leave its log-probabilities out.
    rewards: reward models, perhaps of other architectures.
  """

  policy: t5.T5
  value: policy_lib.ValueModel | None
  reference: t5.T5 | None
  rewards: Sequence[reward_model.RewardModel]


def role_variables(
  frozen: Mapping[str, Any], role: Mapping[str, Any]
) -> dict[str, Any]:
  """Gives a role its backbone: what is shared, and over it what it has."""
  return tree_paths.overlay({'params': frozen['params']}, role)


def sample(
  models: Models,
  policy: Mapping[str, Any],
  frozen: Mapping[str, Any],
  keys: jax.Array,
  batch: typing.Batch,
  config: sampler.SamplingConfig,
) -> dict[str, jax.Array]:
  """Samples responses of the policy.

  Args:
    models: the modules.
    policy: variables of the policy.
    frozen: see `Models`.
    keys: random keys `[batch]`.
    batch: prompts; see `models.prompts.of_batch`.
    config: how to sample.

  Returns:
    `batch`, with `response_tokens`, `response_mask` and `logprobs`, each
    `[batch, responses, length]`.
  """
  samples = sampler.sample(
    models.policy,
    role_variables(frozen, policy),
    prompts_lib.of_batch(batch),
    keys,
    config,
  )
  return {
    **batch,
    'response_tokens': samples.tokens,
    'response_mask': samples.mask,
    'logprobs': samples.logprobs,
  }


def trim(samples: typing.Batch, length: int) -> dict[str, typing.Array]:
  """Cuts responses to `length`, which must hold every token of them."""
  trimmed = dict(samples)
  for name in ('response_tokens', 'response_mask', 'logprobs'):
    trimmed[name] = samples[name][..., :length]
  return trimmed


def assess(
  models: Models,
  value: Mapping[str, Any] | None,
  frozen: Mapping[str, Any],
  samples: typing.Batch,
  temperature: float,
) -> dict[str, jax.Array]:
  """Has reference, value model and reward models look at samples.

  Args:
    models: the modules.
    value: variables of the value model; None to leave values out.
    frozen: see `Models`.
    samples: of `sample`.
    temperature: of the sampling, which the reference shares: the KL is that
      between what acts and what would have acted.

  Returns:
    `samples`, with `ref_logprobs` and `values`, `[batch, responses, length]`,
    and `model_scores` `[batch, responses, models]`, as far as there are such
    models.
  """
  prompts = prompts_lib.of_batch(samples)
  tokens = samples['response_tokens']
  assessed = dict(samples)
  if models.reference is not None:
    assessed['ref_logprobs'] = policy_lib.response_logprobs(
      models.reference,
      role_variables(frozen, {}),
      prompts,
      tokens,
      temperature=temperature,
    )
  if value is not None:
    assessed['values'] = models.value.values(
      role_variables(frozen, value), prompts, tokens
    )
  if models.rewards:
    ended, ended_mask = end_with_eos(tokens, samples['response_mask'])
    assessed['model_scores'] = jnp.stack(
      [
        model.scores(
          role_variables(frozen, variables), prompts, ended, ended_mask
        )
        for model, variables in zip(
          models.rewards, frozen['rewards'], strict=True
        )
      ],
      axis=-1,
    )
  return assessed


def has_eos(
  tokens: Int[typing.Array, 'batch responses length'],
  mask: Bool[typing.Array, 'batch responses length'],
) -> Bool[jax.Array, 'batch responses']:
  """Tells which responses ended by themselves: `[batch, responses]`."""
  return jnp.any((tokens == EOS_ID) & mask, axis=-1)


def end_with_eos(
  tokens: Int[typing.Array, 'batch responses length'],
  mask: Bool[typing.Array, 'batch responses length'],
) -> tuple[
  Int[jax.Array, 'batch responses longer'],
  Bool[jax.Array, 'batch responses longer'],
]:
  """Gives every response the EOS at which reward models read their score.

  They were trained on responses that end with it, cut ones included, so one
  that ran out of room gets it in an additional place.

  Returns:
    Tokens and mask, `[batch, responses, length + 1]`.
  """
  pad = ((0, 0), (0, 0), (0, 1))
  tokens, mask = jnp.pad(tokens, pad), jnp.pad(mask, pad)
  lacks = ~has_eos(tokens, mask)
  tokens = tokens.at[..., -1].set(jnp.where(lacks, EOS_ID, 0))
  return tokens, mask.at[..., -1].set(lacks)
