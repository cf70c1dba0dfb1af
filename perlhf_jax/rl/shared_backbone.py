"""The models of the roles, and the backbone that they share.

Every role is a set of variables over one frozen backbone: the policy and the
value model have adapters, a reward model has adapters and a head, and the
reference is the backbone itself. A role that has `params` of its own (all of
them under full tuning, a reward model with another base) uses those instead.

A role whose adapters and weights of its own are all in the decoder encodes
prompts as the bare backbone does. `PromptSource` has that done once for all
such roles.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5

Variables = Mapping[str, Any]

_DECODER = 'decoder/'


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


def shares_encoding(role: Variables) -> bool:
  """Whether a role encodes prompts as the bare backbone does.

  What tokens are embedded by is read by both stacks, and counts as a part of
  the encoder; a PaLI's ViT and projection do too.

  Args:
    role: what the role has beside the backbone.
  """
  return all(
    path.startswith(_DECODER)
    for collection in ('params', 'lora')
    for path in tree_paths.flatten(role.get(collection, {}))
  )


class PromptSource:
  """Gives each role of a program what it reads of the prompts.

  Attributes:
    encoding: the bare backbone's, once it is known; None before.
  """

  def __init__(
    self,
    frozen: Variables,
    prompts: prompts_lib.Prompts,
    encoding: prompts_lib.Encoded | None = None,
  ):
    """Takes the prompts.

    Args:
      frozen: see `Models`.
      prompts: the prompts.
      encoding: the bare backbone's, if it was made before.
    """
    self._frozen, self._prompts = frozen, prompts
    self.encoding = encoding

  def of(self, model: t5.T5, role: Variables) -> prompts_lib.MaybeEncoded:
    """Returns the bare backbone's encoding if a role shares it, or prompts.

    Args:
      model: of the role; the backbone's configuration is its own if it shares.
      role: what it has beside the backbone.
    """
    if not shares_encoding(role):
      return self._prompts
    if self.encoding is None:
      bare = encoder_decoder.make_model(model.config)
      self.encoding = bare.apply(
        backbone_of(self._frozen), self._prompts, method='encode'
      )
    return self.encoding
