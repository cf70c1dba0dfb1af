import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.stages import setup_run
from perlhf_jax.training import partitioning


def test_what_is_placed_twice_does_not_share_its_memory():
  # As policy and reference do under full tuning; merged or stacked weights
  # are on a device already.
  mesh = partitioning.make_mesh()
  given = {'params': {'kernel': jnp.arange(6.0).reshape(2, 3)}}

  def init():
    return {'params': {'kernel': jnp.zeros((2, 3))}}

  policy, _ = setup_run.place(init, given, mesh)
  reference, _ = setup_run.place(init, given, mesh)
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
    return {'params': {'kernel': draw}, 'heads': {'bias': draw[0]}}

  given = {'params': {'kernel': np.full((2, 3), 7, np.float32)}}
  placed, shardings = setup_run.place(init, given, mesh)
  np.testing.assert_array_equal(placed['params']['kernel'], 7)
  np.testing.assert_allclose(placed['heads']['bias'], init()['heads']['bias'])
  assert jax.tree.structure(placed) == jax.tree.structure(shardings)
