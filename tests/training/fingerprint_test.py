import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.training import fingerprint
from perlhf_jax.training import layer_layout


def _tree():
  kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7
  return {
    'encoder': {
      'layers_0': {'kernel': kernel[0]},
      'layers_1': {'kernel': kernel[1]},
    },
    'scale': np.array([1.0, -2.5], np.float32),
  }


# Adapters on disk name their base by this: it may never change.
GOLDEN = '3a303c653bd48ae9'


def test_golden():
  assert fingerprint.fingerprint(_tree()) == GOLDEN


def _mix(x):
  """Murmur3's finaliser in Python's integers."""
  x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
  x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
  return x ^ (x >> 16)


def test_matches_a_loop_over_numbers():
  lines = []
  for name, leaf in (
    ('encoder/layers_0/kernel', _tree()['encoder']['layers_0']['kernel']),
    ('encoder/layers_1/kernel', _tree()['encoder']['layers_1']['kernel']),
    ('scale', _tree()['scale']),
  ):
    sums = []
    for multiplier in (2654435761, 2246822519):
      total = 0
      for position, bits in enumerate(leaf.reshape(-1).view(np.uint32)):
        total += _mix((int(bits) + multiplier * (position + 1)) % 2**32)
      sums.append(total % 2**32)
    lines.append(f'{name} {leaf.shape} {sums[0]} {sums[1]}')
  text = '\n'.join(sorted(lines)).encode()
  assert hashlib.sha256(text).hexdigest()[:16] == GOLDEN


def test_sixteen_hexadecimal_digits():
  assert re.fullmatch(r'[0-9a-f]{16}', fingerprint.fingerprint(_tree()))


def test_numpy_or_jax_or_order_of_keys_do_not_matter():
  tree = _tree()
  reordered = dict(reversed(tree.items()))
  assert fingerprint.fingerprint(reordered) == GOLDEN
  assert fingerprint.fingerprint(jax.tree.map(jnp.asarray, tree)) == GOLDEN


def test_layout_does_not_matter():
  stacked = layer_layout.stack_layers(_tree())
  assert 'layers' in stacked['encoder']
  assert fingerprint.fingerprint(stacked) == GOLDEN


def test_layout_of_a_model_does_not_matter():
  params = tiny_models.params()
  assert fingerprint.fingerprint(params) == fingerprint.fingerprint(
    layer_layout.stack_layers(params)
  )


def test_any_single_bit_matters():
  seen = {GOLDEN}
  for index in range(12):
    for bit in (0, 13, 31):
      tree = _tree()
      flat = tree['encoder']['layers_1']['kernel'].reshape(-1)
      flat.view(np.uint32)[index] ^= np.uint32(1 << bit)
      seen.add(fingerprint.fingerprint(tree))
  assert len(seen) == 1 + 12 * 3


def test_positions_matter():
  swapped = _tree()
  kernel = swapped['encoder']['layers_0']['kernel']
  kernel[0, [0, 1]] = kernel[0, [1, 0]]
  rows = _tree()
  kernel = rows['encoder']['layers_0']['kernel']
  kernel[[0, 1]] = kernel[[1, 0]]
  layers = _tree()
  encoder = layers['encoder']
  layers['encoder'] = {
    'layers_0': encoder['layers_1'],
    'layers_1': encoder['layers_0'],
  }
  prints = {fingerprint.fingerprint(t) for t in (swapped, rows, layers)}
  assert len(prints | {GOLDEN}) == 4


def test_names_and_shapes_matter():
  renamed = _tree()
  renamed['other'] = renamed.pop('scale')
  reshaped = _tree()
  reshaped['scale'] = reshaped['scale'][None]
  fewer = _tree()
  del fewer['scale']
  # A zero more is a position more.
  longer = _tree()
  longer['scale'] = np.append(longer['scale'], np.float32(0))
  prints = {
    fingerprint.fingerprint(t) for t in (renamed, reshaped, fewer, longer)
  }
  assert len(prints | {GOLDEN}) == 5


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted_by_name(bad):
  tree = _tree()
  assert fingerprint.read(tree) == (GOLDEN, {})
  tree['encoder']['layers_1']['kernel'][2, 1:] = bad
  tree['scale'][0] = bad
  wanted = {'encoder/layers_1/kernel': 3, 'scale': 1}
  assert fingerprint.read(tree).not_finite == wanted
  stacked = layer_layout.stack_layers(tree)
  assert fingerprint.read(stacked).not_finite == wanted
