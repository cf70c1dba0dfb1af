"""Logits in chunks against logits of every token."""

import dataclasses
import re

import chunked_logits
import jax
import jax.numpy as jnp
import numpy as np
import program_results
import pytest

from perlhf_jax.core import tree_paths
from perlhf_jax.models import output_layer
from perlhf_jax.models import t5
from perlhf_jax.objectives import losses

_POSITION_BYTES = chunked_logits.ROWS * chunked_logits.UNTIED.vocab_size * 4


def _same(actual, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
    actual,
    expected,
  )


@pytest.fixture
def positions(monkeypatch):
  """Sets how many positions a chunk of the tests' batch may have."""

  def set_positions(count):
    limit = count * _POSITION_BYTES
    monkeypatch.setattr(output_layer, 'CHUNK_BYTES', limit)

  return set_positions


@pytest.mark.parametrize('name', chunked_logits.CASES)
def test_values_and_gradients_are_those_of_whole_logits(name, positions):
  positions(3)
  model, trained, frozen = chunked_logits.make(name)
  batch = chunked_logits.batch(model.config)
  results = [
    jax.jit(chunked_logits.value_and_grad(function, model))(
      trained, frozen, *batch
    )
    for function in (chunked_logits.chunked, chunked_logits.whole)
  ]
  _same(*results, rtol=2e-5, atol=2e-5)
  (_, (sums, _)), _ = results[0]
  assert 0 < sums.z_loss_sum < sums.loss_sum


@pytest.mark.parametrize('name', chunked_logits.CASES)
def test_no_program_holds_more_logits_than_a_chunk(name, positions):
  model, trained, frozen = chunked_logits.make(name)
  batch = chunked_logits.batch(model.config)

  def positions_of_logits():
    program = jax.make_jaxpr(
      chunked_logits.value_and_grad(chunked_logits.chunked, model)
    )(trained, frozen, *batch)
    shapes = set(re.findall(r'f32\[([\d,]+)\]', str(program)))
    sizes = [list(map(int, shape.split(','))) for shape in shapes]
    rows, vocabulary = chunked_logits.ROWS, model.config.vocab_size
    return {
      int(np.prod(size[:-1])) // rows
      for size in sizes
      if size[-1] == vocabulary and rows in size and len(size) > 2
    }

  positions(chunked_logits.LENGTH)
  assert positions_of_logits() == {chunked_logits.LENGTH}
  positions(2)
  assert positions_of_logits() == {2}


@pytest.mark.parametrize(
  ('name', 'products'), [('untied, frozen', 2), ('untied, trained', 4)]
)
def test_only_a_trained_output_layer_is_multiplied_again(
  name, products, positions
):
  """The logits and their gradient; of what is trained two gradients, and the
  logits a second time.
  """
  positions(2)
  model, trained, frozen = chunked_logits.make(name)
  hidden, targets, _ = chunked_logits.batch(model.config)

  def loss(trained, hidden):
    logprobs, _ = output_layer.per_token(
      model,
      tree_paths.unflatten({**trained, **frozen}),
      hidden,
      lambda *inputs: (losses.token_logprobs(*inputs), ()),
      targets,
    )
    return jnp.sum(jnp.sin(logprobs))

  program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(trained, hidden)
  assert str(program).count('dot_general') == products


@pytest.mark.parametrize('name', ['untied, frozen', 'untied, trained'])
def test_infinite_losses_of_padding_are_silent(name, positions):
  positions(2)
  model, trained, frozen = chunked_logits.make(name)
  hidden, targets, weights = chunked_logits.batch(model.config)
  hidden[:, -1] = np.inf

  def sft(model, variables, hidden, targets, weights):
    _, (sums, logprobs) = chunked_logits.chunked(
      model, variables, hidden, targets, weights
    )
    return sums.loss_sum, logprobs

  (loss, _), (_, gradient) = chunked_logits.value_and_grad(sft, model)(
    trained, frozen, hidden, targets, weights
  )
  assert np.isfinite(loss)
  assert np.isfinite(gradient[:, :-1]).all()


def test_chunks_are_rounded_as_whole_logits_are(positions):
  """In bfloat16 both multiply bfloat16 and add up in float32."""
  config = dataclasses.replace(chunked_logits.UNTIED, dtype='bfloat16')
  _, trained, frozen = chunked_logits.make('untied, trained')
  model = t5.T5(config)
  hidden, *rest = chunked_logits.batch(config)
  batch = jnp.asarray(hidden, jnp.bfloat16), *rest
  exact, _ = chunked_logits.value_and_grad(
    chunked_logits.whole, t5.T5(chunked_logits.UNTIED)
  )(trained, frozen, *batch)
  results = []
  for count in (2, chunked_logits.LENGTH):
    positions(count)
    run = chunked_logits.value_and_grad(chunked_logits.chunked, model)
    results.append(jax.jit(run)(trained, frozen, *batch))
  # Products are the same; what is made of them may be fused otherwise.
  _same(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
  _same(results[0][1], results[1][1], rtol=0.03, atol=0.03)
  _same(results[0][0], exact, rtol=0.02, atol=0.05)


def test_chunks_depend_on_the_shape_alone(monkeypatch):
  config = dataclasses.replace(chunked_logits.UNTIED, vocab_size=250_112)
  limit = output_layer.CHUNK_BYTES

  def chunk_bytes(rows, length):
    of_a_position = output_layer.position_bytes(config, rows)
    assert of_a_position == rows * config.vocab_size * 4
    size = output_layer.chunk_length(length, of_a_position)
    return size, size * of_a_position

  assert chunk_bytes(2, 8) == (8, 2 * 8 * 250_112 * 4)
  size, held = chunk_bytes(2, 128)
  assert size < 128 and limit / 2 < held <= limit
  # There are no chunks of less than a position.
  assert chunk_bytes(10_000, 128)[0] == 1


@pytest.fixture(scope='module')
def meshes(preloaded, tmp_path_factory):
  folder = tmp_path_factory.mktemp('output_layer')
  return program_results.run(
    preloaded, 'models/output_layer_program.py', folder
  )


@pytest.mark.parametrize('name', chunked_logits.CASES)
@pytest.mark.parametrize('mesh', [(2, 2, 2), (1, 8, 1)])
def test_meshes_change_nothing(meshes, mesh, name):
  result, chunks = meshes[mesh, name]
  model, trained, frozen = chunked_logits.make(name)
  expected = chunked_logits.value_and_grad(chunked_logits.whole, model)(
    trained, frozen, *chunked_logits.batch(model.config)
  )
  _same(result, jax.device_get(expected), rtol=2e-5, atol=2e-5)
  assert chunks == 4
