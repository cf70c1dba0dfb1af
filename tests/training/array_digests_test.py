"""Digests of arrays: the same everywhere, and others for other arrays."""

import array_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.training import array_digests


def _digest(array):
  (digest,) = array_digests.finish(array_digests.begin([array])).values()
  return digest


def _array(shape, dtype, seed=0):
  data = np.random.default_rng(seed).bytes(
    int(np.prod(shape)) * np.dtype(dtype).itemsize
  )
  if dtype == np.bool_:
    data = bytes(byte & 1 for byte in data)
  return np.frombuffer(data, dtype).reshape(shape)


@pytest.mark.parametrize('shape', [(), (1,), (0, 3), (7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize(
  'dtype',
  ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'bool'],
)
def test_it_is_that_of_the_reference(shape, dtype):
  # Any bits, NaNs included.
  array = _array(shape, jnp.dtype(dtype))
  expected = array_reference.digest(array)
  assert _digest(array) == expected
  assert _digest(jnp.asarray(array)) == expected


@pytest.mark.parametrize('dtype', ['int64', 'float64', 'uint64'])
def test_64_bits_of_the_host_are_digested_whole(dtype):
  array = _array((3, 2), np.dtype(dtype))
  assert _digest(array) == array_reference.digest(array)
  assert _digest(array[:, 0]) == array_reference.digest(array[:, 0])


def test_each_bit_matters():
  array = _array((3, 2), np.dtype('float32'))
  seen = {_digest(array)}
  for place in range(8 * array.nbytes):
    data = bytearray(array.tobytes())
    data[place // 8] ^= 1 << place % 8
    seen.add(_digest(np.frombuffer(data, 'f4').reshape(3, 2)))
  assert len(seen) == 1 + 8 * array.nbytes


def test_places_dtype_and_shape_matter():
  array = np.float32([[1, -1, 2], [3, 0, 0]])
  others = [
    # A value and its negative differ by half of 2**32.
    np.float32([[-1, 1, 2], [3, 0, 0]]),
    np.float32([[1, -1, 3], [2, 0, 0]]),
    np.float32([[3, 0, 0], [1, -1, 2]]),
    np.zeros_like(array),
    -array,
    array.view('i4'),
    array.reshape(3, 2),
    array.reshape(6),
    array[:, :2],
    np.pad(array, ((0, 0), (0, 1))),
  ]
  assert len({_digest(each) for each in (array, *others)}) == 1 + len(others)


def test_arrays_that_changed_are_named():
  tree = {'a': {'w': jnp.ones((2, 2))}, 'b': [jnp.zeros((2, 2))]}
  saved = array_digests.finish(array_digests.begin(tree))
  assert set(saved) == {'a/w', 'b/0'}
  assert array_digests.changed(tree, saved) == []
  assert array_digests.changed({'a': tree['a']}, saved) == []
  swapped = {'a': {'w': tree['b'][0]}, 'b': [tree['a']['w']]}
  assert array_digests.changed(swapped, saved) == ['a/w', 'b/0']
  assert array_digests.changed({**tree, 'c': jnp.ones(1)}, saved) == ['c']


def test_arrays_may_be_donated_while_they_are_digested():
  advance = jax.jit(lambda x: x + 1, donate_argnums=0)
  array = jnp.zeros((1000, 1000))
  expected = _digest(np.zeros((1000, 1000), np.float32))
  pending = array_digests.begin([array])
  for _ in range(5):
    array = advance(array)
  (found,) = array_digests.finish(pending).values()
  assert found == expected
