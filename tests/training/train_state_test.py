import jax
import numpy as np
import optax
import pytest
import tiny_models

from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_state


def test_create():
  optimizer = optax.adam(0.1)
  state = train_state.create({'lora': {'a': np.ones(3)}}, optimizer)
  assert state.step == 0 and state.step.dtype == np.int32
  np.testing.assert_array_equal(state.trainable['lora']['a'], 1)


@pytest.mark.parametrize('name', ('adafactor', 'adamw'))
def test_every_leaf_has_a_sharding(name):
  mesh = partitioning.make_mesh()
  boxed = {'params': tiny_models.abstract_variables(tiny_models.CONFIG)}
  boxed = {'params': boxed['params']['params']}
  shardings = partitioning.shardings_of(boxed, mesh)
  optimizer = optimizers.make_optimizer(
    optimizers.Optimizer(name=name, weight_decay=0.1), 10
  )
  trainable = {'params': tiny_models.params()}
  state = jax.eval_shape(lambda t: train_state.create(t, optimizer), trainable)
  actual = train_state.state_shardings(shardings, trainable, optimizer, mesh)
  assert jax.tree.structure(actual) == jax.tree.structure(state)
  by_shape = {}
  for leaf, sharding in zip(
    jax.tree.leaves(state.opt_state),
    jax.tree.leaves(actual.opt_state),
    strict=True,
  ):
    by_shape.setdefault(leaf.shape, set()).add(sharding.spec)
  # The moments of the embedding lie as the embedding does.
  assert by_shape[(40, 16)] == {jax.P('tensor', 'fsdp')}
  assert by_shape[()] == {jax.P()}


def _bytes(lora_config):
  """Bytes of a reward model's checkpoint with Adafactor's state."""
  adapters = None
  if lora_config is not None:
    adapters = lora.resolve(
      lora_config, encoder_decoder.dense_module_paths(tiny_models.T5_1_1_BASE)
    )
  model = t5.T5(tiny_models.T5_1_1_BASE, adapters)

  def state():
    variables = encoder_decoder.init_variables(model, jax.random.key(0))
    variables = dict(variables)
    if adapters is not None:
      del variables['params']
    heads = reward_model.init_heads(tiny_models.T5_1_1_BASE, jax.random.key(1))
    optimizer = optimizers.make_optimizer(optimizers.Optimizer(), 10)
    return train_state.create({**variables, 'heads': heads}, optimizer)

  return tree_paths.count_bytes(jax.eval_shape(state))


def test_adapter_checkpoint_of_t5_base_is_under_two_percent():
  adapter = _bytes(lora.LoraConfig(rank=8))
  full = _bytes(None)
  assert full > 247_577_856 * 4
  # 144 adapters between widths 768, and a second moment for each number.
  assert adapter > 2 * 4 * 144 * 8 * 2 * 768
  assert adapter < 0.02 * full
