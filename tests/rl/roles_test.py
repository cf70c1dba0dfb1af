"""What the four roles hold, by shapes alone: nothing here is materialised."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import tree_paths
from perlhf_jax.data import vocabularies
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import reward_model
from perlhf_jax.rl import roles
from perlhf_jax.training import partitioning

BASE = tiny_models.T5_1_1_BASE


def _bytes(tree):
  leaves = jax.tree.leaves(flax.core.meta.unbox(tree))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _held(lora, config=BASE):
  """Bytes of all four roles, and of one backbone."""
  adapters = None
  if lora is not None:
    adapters = lora_lib.resolve(
      lora, encoder_decoder.dense_module_paths(config)
    )
  start = loaded_model.LoadedModel(config, vocabularies.byte_vocabulary())
  held = jax.eval_shape(
    lambda: roles.init_roles(start, adapters, 0, needs_value=True)[1]
  )

  def init_reward():
    rng = jax.random.key(0)
    model = encoder_decoder.make_model(config, adapters)
    variables = encoder_decoder.init_variables(model, rng)
    own = 'params' if adapters is None else 'lora'
    return {
      own: variables[own],
      'heads': reward_model.init_heads(config, rng),
    }

  reward = jax.eval_shape(init_reward)
  return held, _bytes(held) + _bytes(reward), _bytes(held['params'])


@pytest.mark.parametrize('scan_layers', [False, True])
def test_lora_roles_together_are_little_more_than_one_backbone(scan_layers):
  config = dataclasses.replace(BASE, scan_layers=scan_layers)
  held, total, backbone = _held(lora_lib.LoraConfig(rank=8), config)
  assert backbone > 4 * 240e6  # float32 of some 248 million parameters
  assert total / backbone < 1.1
  assert set(held['policy']) == {'lora'}
  assert set(held['value']) == {'lora', 'heads'}


def test_full_tuning_holds_four_backbones():
  _, total, backbone = _held(None)
  assert 4.0 < total / backbone < 4.001


def test_without_a_baseline_there_is_no_value_model():
  adapters = lora_lib.resolve(
    lora_lib.LoraConfig(), encoder_decoder.dense_module_paths(BASE)
  )
  start = loaded_model.LoadedModel(BASE, vocabularies.byte_vocabulary())
  held = jax.eval_shape(
    lambda: roles.init_roles(start, adapters, 0, needs_value=False)[1]
  )
  assert set(held) == {'params', 'policy'}


def test_policy_and_value_begin_with_adapters_of_their_own():
  config = dataclasses.replace(
    BASE,
    vocab_size=16,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  adapters = lora_lib.resolve(
    lora_lib.LoraConfig(rank=2), encoder_decoder.dense_module_paths(config)
  )
  start = loaded_model.LoadedModel(config, vocabularies.byte_vocabulary())
  _, held = roles.init_roles(start, adapters, 0, needs_value=True)
  held = flax.core.meta.unbox(held)
  policy = tree_paths.flatten(held['policy'])
  value = tree_paths.flatten(held['value'])
  for path, leaf in policy.items():
    if path.endswith('lora_b'):
      assert not leaf.any()  # Both begin as the reference.
    else:
      assert (leaf != value[path]).any(), path


def test_dora_begins_as_the_reference():
  config = tiny_models.CONFIG
  mesh = partitioning.make_mesh()
  params = jax.tree.map(jnp.asarray, tiny_models.params(config))
  start = loaded_model.LoadedModel(
    config, vocabularies.byte_vocabulary(), params=params
  )
  lora = lora_lib.LoraConfig(rank=2, dora=True)
  made = roles.make_roles(start, lora, mesh, 0, needs_value=True)
  response, _ = tiny_models.ragged_tokens(1, 3, 7)
  inputs = tiny_models.prompts(0, 3, 9), response
  backbone = {'params': made.frozen['params']}
  reference = jax.jit(made.models.reference.apply)(backbone, *inputs)
  # The reference is the backbone to the bit, whatever the adapters are.
  bare = jax.jit(encoder_decoder.make_model(config).apply)
  np.testing.assert_array_equal(reference, bare({'params': params}, *inputs))
  apply = jax.jit(made.models.policy.apply)
  for role in ('policy', 'value'):
    adapters = {'lora': made.trainable[role]['lora']}
    np.testing.assert_allclose(
      apply({**backbone, **adapters}, *inputs), reference, atol=2e-5
    )
