"""The models of the roles, and the backbone that they share.

Every role is a set of variables over one frozen backbone: the policy and the
value model have adapters, a reward model has adapters and a head, and the
reference is the backbone itself. A role with `params` of its own uses those
instead (all roles under full tuning, a reward model with another base).

A role whose adapters and own weights are all in the decoder encodes prompts as
the bare backbone does. `PromptSource` encodes prompts once for all such roles.
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
  """The modules of the roles; separate trees hold their weights.

  The `frozen` tree of every function is `{'params': …, 'rewards': (…,)}`: the
  backbone, which is the reference, and each reward model's own variables.

  Attributes:
    policy: backbone with adapters; bare under full tuning.
    value: value model; None for algorithms without a baseline.
    reference: the bare backbone; None to skip its log-probabilities.
    rewards: reward models, perhaps of other architectures.
  """

  policy: t5.T5
  value: policy_lib.ValueModel | None
  reference: t5.T5 | None
  rewards: Sequence[reward_model.RewardModel]


def backbone_of(frozen: Variables) -> dict[str, Any]:
  """Returns the part of `frozen` that the policy reads."""
  return {'params': frozen['params']}


def role_variables(frozen: Variables, role: Variables) -> dict[str, Any]:
  """Merges the shared backbone with a role's variables, which override it."""
  return tree_paths.overlay(backbone_of(frozen), role)


def shares_encoding(role: Variables) -> bool:
  """Whether a role encodes prompts as the bare backbone does.

  The token embedding, which both stacks read, counts as part of the encoder. So
  do PaLI's ViT and projection.

  Args:
    role: the role's own variables.
  """
  return all(
    path.startswith(_DECODER)
    for collection in ('params', 'lora')
    for path in tree_paths.flatten(role.get(collection, {}))
  )


class PromptSource:
  """Gives each role of a program the prompts, or their shared encoding.

  Attributes:
    encoding: the bare backbone's encoding; None before it is computed.
  """

  def __init__(
    self,
    frozen: Variables,
    prompts: prompts_lib.Prompts,
    encoding: prompts_lib.Encoded | None = None,
  ):
    """Creates a source.

    Args:
      frozen: see `Models`.
      prompts: the prompts.
      encoding: the bare backbone's encoding, if it is computed already.
    """
    self._frozen, self._prompts = frozen, prompts
    self.encoding = encoding

  def of(self, model: t5.T5, role: Variables) -> prompts_lib.MaybeEncoded:
    """Returns the bare backbone's encoding if a role shares it, else prompts.

    Args:
      model: the role's model; if the role shares the encoding, the model has
        the backbone's configuration.
      role: the role's own variables.
    """
    if not shares_encoding(role):
      return self._prompts
    if self.encoding is None:
      bare = encoder_decoder.make_model(model.config)
      self.encoding = bare.apply(
        backbone_of(self._frozen), self._prompts, method='encode'
      )
    return self.encoding
