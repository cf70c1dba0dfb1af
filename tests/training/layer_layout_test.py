import jax
import numpy as np
import tiny_models

from perlhf_jax.training import layer_layout


def _tree(num_layers=12):
  return {
    'encoder': {
      **{
        f'layers_{i}': {'mlp': {'kernel': np.full((2, 3), i, np.float32)}}
        for i in range(num_layers)
      },
      'norm': {'scale': np.ones(3, np.float32)},
    }
  }


def test_layers_are_stacked_by_number_not_by_name():
  stacked = layer_layout.stack_layers(_tree())
  kernel = stacked['encoder']['layers']['mlp']['kernel']
  assert kernel.shape == (12, 2, 3)
  # As text layers_10 would come before layers_2.
  np.testing.assert_array_equal(kernel[:, 0, 0], np.arange(12))
  assert set(stacked['encoder']) == {'layers', 'norm'}


def test_unstack_is_the_inverse():
  tree = _tree()
  restored = layer_layout.unstack_layers(layer_layout.stack_layers(tree))
  assert jax.tree.structure(restored) == jax.tree.structure(tree)
  jax.tree.map(np.testing.assert_array_equal, restored, tree)


def test_to_layout_leaves_the_right_layout_alone():
  unrolled = tiny_models.params()
  stacked = layer_layout.to_layout(unrolled, scan_layers=True)
  for tree, scan_layers in ((unrolled, False), (stacked, True)):
    same = layer_layout.to_layout(tree, scan_layers)
    jax.tree.map(np.testing.assert_array_equal, same, dict(tree))
  back = layer_layout.to_layout(stacked, scan_layers=False)
  jax.tree.map(np.testing.assert_array_equal, back, unrolled)
