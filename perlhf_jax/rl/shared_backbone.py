"""The models of the roles, and the backbone that they share.

Every role is a set of variables over one frozen backbone: the policy and the
value model have adapters, a reward model has adapters and a head, and the
reference is the backbone itself. A role that has `params` of its own (all of
them under full tuning, a reward model with another base) uses those instead.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from perlhf_jax.core import tree_paths
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5

Variables = Mapping[str, Any]


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


def backbone_of(frozen: Variables) -> dict[str, Any]:
  """Returns what of `frozen` the policy reads."""
  return {'params': frozen['params']}


def role_variables(frozen: Variables, role: Variables) -> dict[str, Any]:
  """Gives a role its backbone: what is shared, and over it what it has."""
  return tree_paths.overlay(backbone_of(frozen), role)
