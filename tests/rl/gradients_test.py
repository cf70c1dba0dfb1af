"""Gradients of policy and value model, of one after the other."""

import pytest

from perlhf_jax.core import errors
from perlhf_jax.rl import gradients
from perlhf_jax.rl import grpo
from perlhf_jax.rl import ppo
from perlhf_jax.rl import reinforce
from perlhf_jax.rl import rloo


@pytest.mark.parametrize(
  'algorithm', [reinforce.Reinforce(), ppo.Ppo(), rloo.Rloo(), grpo.Grpo()]
)
def test_our_algorithms_are_separable(algorithm):
  gradients.check_separable(algorithm)


class _Mixed(reinforce.Reinforce):
  """Forgets that a baseline is constant in the policy's loss."""

  def loss(self, outputs, episodes, targets, kl_beta):
    output = super().loss(outputs, episodes, targets, kl_beta)
    more = -(outputs.logprobs * (targets.returns - outputs.values)).sum()
    return output._replace(loss_sum=output.loss_sum + more)


def test_a_loss_that_mixes_its_models_is_refused():
  with pytest.raises(errors.ConfigError, match=r'_Mixed\.loss .* depends on'):
    gradients.check_separable(_Mixed())
