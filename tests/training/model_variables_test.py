import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.training import model_variables
from perlhf_jax.training import partitioning


def test_what_is_placed_twice_does_not_share_its_memory():
  # As policy and reference do under full tuning; merged or stacked weights
  # are on a device already.
  mesh = partitioning.make_mesh()
  given = {'params': {'kernel': jnp.arange(6.0).reshape(2, 3)}}

  def init():
    return {'params': {'kernel': jnp.zeros((2, 3))}}

  policy, reference = (
    model_variables.place(init, model_variables.copy(given), mesh)[0]
    for _ in range(2)
  )
  step = jax.jit(
    lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0
  )
  moved = step(policy)
  wanted = np.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(moved['params']['kernel'], wanted + 1)
  for tree in reference, given:
    np.testing.assert_array_equal(tree['params']['kernel'], wanted)


def test_only_what_is_not_given_is_drawn():
  mesh = partitioning.make_mesh()

  def init():
    draw = jax.random.normal(jax.random.key(0), (2, 3))
    return {
      'params': {'kernel': draw, 'scale': draw[1]},
      'heads': {'bias': draw[0]},
    }

  given = {'params': {'kernel': jnp.full((2, 3), 7.0)}}
  placed, shardings = model_variables.place(init, given, mesh)
  np.testing.assert_array_equal(placed['params']['kernel'], 7)
  np.testing.assert_allclose(
    placed['params']['scale'], init()['params']['scale']
  )
  np.testing.assert_allclose(placed['heads']['bias'], init()['heads']['bias'])
  assert jax.tree.structure(placed) == jax.tree.structure(shardings)


def test_shapes_are_those_of_what_is_placed():
  mesh = partitioning.make_mesh()

  def init():
    return {'heads': {'bias': jnp.zeros(3), 'kernel': jnp.ones((2, 1))}}

  placed, shardings = model_variables.place(init, {}, mesh)
  shapes, same = model_variables.shapes(init, mesh)
  assert same == shardings
  for leaf, shape in zip(
    jax.tree.leaves(placed), jax.tree.leaves(shapes), strict=True
  ):
    assert isinstance(shape, jax.ShapeDtypeStruct)
    assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
    assert shape.sharding == leaf.sharding
