"""Counted costs against shapes, and against XLA's own count."""

import flax
import jax
import jax.numpy as jnp
import pytest

from perlhf_jax.benchmark import costs
from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import prompts
from perlhf_jax.models import t5_config
from perlhf_jax.sampling import sampler

_ROWS, _PROMPT, _RESPONSE = 4, 10, 12


def _count(function, *shapes):
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return costs.count(jax.jit(function).trace(*arrays))


def test_products_count_twice_their_multiplications():
  cost = _count(
    lambda a, b: jnp.einsum('bij,bjk->bik', a, b), (2, 3, 5), (2, 5, 7)
  )
  assert cost == costs.Cost(2 * 2 * 3 * 5 * 7)


def test_a_backward_pass_and_what_it_recomputes():
  def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w) @ w)

  product = 2 * 3 * 4 * 4
  w, x = (4, 4), (3, 4)
  assert _count(loss, w, x).flops == 2 * product
  # Of the first product no gradient of x is wanted.
  assert _count(jax.grad(loss), w, x).flops == 5 * product
  again = _count(jax.grad(jax.checkpoint(loss)), w, x).flops
  assert again == 6 * product


def test_convolution_as_a_product_of_patches():
  def patches(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  cost = _count(patches, (5, 8, 8, 3), (2, 2, 3, 6))
  assert cost.flops == 2 * (5 * 4 * 4) * (2 * 2 * 3) * 6


def test_a_scan_counts_each_turn_and_a_while_its_turns_apart():
  def scan(w, x):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=6)[0]

  def loop(w, x, unread):
    def turn(state):
      number, x, rest = state
      return number + 1, x @ w.T, rest + 1

    return jax.lax.while_loop(lambda s: s[0] < 5, turn, (0, x @ w, unread))

  product = 2 * 3 * 4 * 4
  assert _count(scan, (4, 4), (3, 4)) == costs.Cost(6 * product)
  cost = _count(loop, (4, 4), (3, 4), (100,))
  assert cost == costs.Cost(product, product, 4 * (4 * 4 + 3 * 4))
  assert cost.total_flops(5) == 6 * product


@pytest.mark.parametrize('scan_layers', [False, True])
def test_a_step_of_the_sampler_reads_weights_and_caches(scan_layers):
  config = t5_config.T5Config(
    vocab_size=300,
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=3,
    mlp_activations=('gelu', 'linear'),
    scan_layers=scan_layers,
  )
  model = encoder_decoder.make_model(config)

  def init():
    variables = encoder_decoder.init_variables(model, jax.random.key(0))
    return flax.core.meta.unbox(variables)

  def sample(variables, tokens):
    return sampler.sample(
      model,
      variables,
      prompts.of_batch(
        {'prompt_tokens': tokens, 'prompt_mask': jnp.ones_like(tokens, bool)}
      ),
      jax.random.split(jax.random.key(0), _ROWS),
      sampler.SamplingConfig(max_length=_RESPONSE),
    )

  variables = jax.eval_shape(init)
  tokens = jax.ShapeDtypeStruct((_ROWS, _PROMPT), jnp.int32)
  cost = costs.count(jax.jit(sample).trace(variables, tokens))

  kernels = {
    path: leaf
    for path, leaf in tree_paths.flatten(variables['params']['decoder']).items()
    if path.endswith('kernel')
    # The prompt's keys and values are made before.
    and not path.endswith(
      ('decoder_attention/key/kernel', 'decoder_attention/value/kernel')
    )
  }
  weights = tree_paths.count_parameters(kernels)
  width = config.num_heads * config.head_dim
  cached = 3 * 2 * _ROWS * width * (_PROMPT + _RESPONSE)
  assert cost.bytes_per_turn == 4 * (weights + cached)
  # Each weight meets each row, and each query the keys and values.
  assert cost.flops_per_turn == 2 * _ROWS * weights + 2 * cached
