"""Digests of the arrays of a step, made in memory where the arrays are.

A digest depends on every bit of an array and on its place, on the dtype and on
the shape. It is the same for every mesh, number of processes and machine, and
takes one pass over the memory of the devices.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.core import typing
from perlhf_jax.training import bit_sums
from perlhf_jax.training import placement


class Pending(NamedTuple):
  """A digest that the devices may still be computing.

  Attributes:
    described: the array's dtype and shape.
    sums: uint32 `[2]`, replicated over the array's devices.
  """

  described: str
  sums: jax.Array


@jax.jit
def _sums(leaf: jax.Array) -> jax.Array:
  if leaf.dtype == jnp.bool_:
    return bit_sums.of(leaf.astype(jnp.uint32))
  words = jnp.dtype(f'uint{8 * leaf.dtype.itemsize}')
  bits = jax.lax.bitcast_convert_type(leaf, words)
  return bit_sums.of(bits.astype(jnp.uint32))


def begin(tree: typing.PyTree) -> dict[str, Pending]:
  """Begins to digest arrays; all processes call it together.

  It does not wait for the devices, and the arrays may be donated afterwards.

  Args:
    tree: `jax.Array`s, and numpy arrays that are the same on all processes.

  Returns:
    The digests by array path, `trainable/params/...`.
  """
  return {
    name: Pending(describe(leaf), _sums(_words(leaf)))
    for name, leaf in by_name(tree).items()
  }


def finish(pending: Mapping[str, Pending]) -> dict[str, str]:
  """Waits for digests; needs no other process.

  Args:
    pending: the result of `begin`.

  Returns:
    By array path the dtype, the shape and 16 hexadecimal digits.
  """
  found = {}
  for name, (described, sums) in pending.items():
    first, second = placement.to_host(sums)
    found[name] = f'{described} {first:08x}{second:08x}'
  return found


def changed(tree: typing.PyTree, expected: Mapping[str, str]) -> list[str]:
  """Names the arrays that differ from those saved; all processes call it.

  Args:
    tree: some or all arrays of a step, by their paths in the step.
    expected: digests from `finish`.
  """
  found = finish(begin(tree))
  return [name for name in found if found[name] != expected.get(name)]


def by_name(tree: typing.PyTree) -> dict[str, Any]:
  """Returns the leaves of a tree by path.

  The paths are the same for the classes and tuples of a training state and the
  dicts and lists in which Orbax describes them.
  """
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def describe(leaf: Any) -> str:
  """Describes dtype and shape of an array: `float32 [3, 4]`."""
  return f'{np.dtype(leaf.dtype).name} {list(leaf.shape)}'


def _words(leaf: Any) -> Any:
  """Returns arrays of 64-bit values, which JAX would convert, as words."""
  if isinstance(leaf, jax.Array) or leaf.dtype.itemsize < 8:
    return leaf
  return np.ascontiguousarray(leaf)[..., None].view('<u4')
