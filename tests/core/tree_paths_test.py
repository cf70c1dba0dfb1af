import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths

TREE = {'b': {'y': 1, 'x': 2}, 'a': 3, 'c': {'z': {'w': 4}}}
PATHS = ('encoder/layers_0/query', 'encoder/layers_0/key', 'decoder/query')


def test_flatten_sorts_paths():
  flat = tree_paths.flatten(TREE)
  assert list(flat.items()) == [
    ('a', 3),
    ('b/x', 2),
    ('b/y', 1),
    ('c/z/w', 4),
  ]


def test_unflatten_is_the_inverse():
  assert tree_paths.unflatten(tree_paths.flatten(TREE)) == TREE


def test_overlay_has_the_leaves_of_both():
  top = {'b': {'x': 5, 'v': 6}, 'd': {'u': 7}, 'e': {}}
  assert tree_paths.overlay(TREE, top) == {
    **TREE,
    'b': {'y': 1, 'x': 5, 'v': 6},
    'd': {'u': 7},
  }
  # What is empty below stays, as a collection that is there.
  assert tree_paths.overlay({'params': {}}, {}) == {'params': {}}
  assert tree_paths.overlay({'params': {}}, TREE) == {'params': {}, **TREE}


def test_counts_of_arrays_and_of_shapes():
  arrays = {'a': np.zeros((2, 3), np.float32), 'b': jnp.zeros(5, jnp.bfloat16)}
  arrays['c'] = np.zeros((), np.int32)
  shapes = jax.eval_shape(lambda: arrays)
  for tree in (arrays, shapes):
    assert tree_paths.count_parameters(tree) == 6 + 5 + 1
    assert tree_paths.count_bytes(tree) == 24 + 10 + 4
  assert tree_paths.count_parameters({}) == 0


def test_patterns_match_whole_paths_once_and_sorted():
  match = tree_paths.match_paths(
    ['.*query', 'encoder/.*'], reversed(PATHS), 'what'
  )
  assert match == tuple(sorted(PATHS))
  assert tree_paths.match_paths(['decoder/query'], PATHS, 'what') == (
    'decoder/query',
  )


@pytest.mark.parametrize('pattern', ['query', 'encoder', 'decoder/quer'])
def test_part_of_a_path_is_no_match(pattern):
  with pytest.raises(errors.ConfigError, match='must match a whole path'):
    tree_paths.match_paths([pattern], PATHS, 'what')


def test_each_pattern_must_match():
  with pytest.raises(errors.ConfigError) as error:
    tree_paths.match_paths(['.*query', 'decoder/qurey'], PATHS, 'My.setting')
  message, shown = str(error.value).split(', for example ')
  assert message == (
    "My.setting: the pattern 'decoder/qurey' matches none of 3 paths. It must "
    'match a whole path'
  )
  assert shown.startswith('decoder/query')  # The nearest comes first.


def test_a_bad_regular_expression():
  with pytest.raises(errors.ConfigError, match=r"My.setting: '\(' is not a re"):
    tree_paths.match_paths(['('], PATHS, 'My.setting')
