import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.core import tree_paths
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import lora
from perlhf_jax.models import t5

UNTIED = dataclasses.replace(
  tiny_models.CONFIG, dtype='bfloat16', logits_via_embedding=False
)
TIED = dataclasses.replace(UNTIED, logits_via_embedding=True)


@pytest.mark.parametrize('config', [UNTIED, TIED], ids=['untied', 'tied'])
def test_no_output_and_no_gradient_changes(config):
  model, adapters = tiny_models.adapted(lora.LoraConfig(rank=2), config)
  params = tiny_models.params(config)
  held = frozen_dtypes.cast(jax.tree.map(jnp.asarray, params), config)
  prompt = tiny_models.prompts(0, 3, 7)
  response, _ = tiny_models.ragged_tokens(1, 3, 5)

  @jax.jit
  def run(adapters, params):
    def loss(adapters):
      variables = {'params': params, 'lora': adapters}
      logits = model.apply(variables, prompt, response)
      return jnp.sum(jnp.sin(logits)), logits

    return jax.grad(loss, has_aux=True)(adapters)

  gradients, logits = run(adapters, params)
  held_gradients, held_logits = run(adapters, held)
  np.testing.assert_array_equal(held_logits, logits)
  jax.tree.map(np.testing.assert_array_equal, held_gradients, gradients)
  assert any(np.any(g != 0) for g in jax.tree.leaves(gradients))


def test_half_of_the_bytes_are_left():
  model = t5.T5(UNTIED)
  params = jax.eval_shape(
    lambda: jax.tree.map(lambda x: x, tiny_models.params(model.config))
  )
  held = frozen_dtypes.cast(params, UNTIED)
  dtypes = {p: x.dtype for p, x in tree_paths.flatten(held).items()}
  for path, leaf in tree_paths.flatten(params).items():
    is_read_in_float32 = path.split('/')[-1] in ('scale', 'rel_embedding')
    wanted = leaf.dtype if is_read_in_float32 else jnp.bfloat16
    assert dtypes[path] == wanted, path
  assert set(dtypes.values()) == {jnp.dtype('float32'), jnp.dtype('bfloat16')}


def test_float32_models_are_held_as_they_are():
  params = jax.tree.map(jnp.asarray, tiny_models.params(tiny_models.CONFIG))
  held = frozen_dtypes.cast(params, tiny_models.CONFIG)
  jax.tree.map(np.testing.assert_array_equal, held, params)
