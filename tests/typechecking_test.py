"""Tests that the shapes and dtypes of our functions are really checked."""

from collections.abc import Callable, Mapping, Sequence
import random
from typing import TypeVar

import jax
import jax.numpy as jnp
import jaxtyping
from jaxtyping import Float, PyTree
import pytest
import typechecking

from perlhf_jax.core import masking
from perlhf_jax.objectives import losses
from perlhf_jax.training import optimizers
from tasks import stable_random

_Plain = TypeVar('_Plain')
_Array = TypeVar('_Array', bound=Float[jax.Array, '...'])


def test_wrong_shape_raises():
  with pytest.raises(jaxtyping.TypeCheckError):
    losses.pairwise_loss(jnp.zeros([4]), jnp.zeros([3]))


def test_wrong_rank_raises():
  with pytest.raises(jaxtyping.TypeCheckError):
    masking.shift_right(jnp.zeros([4], jnp.int32))


def test_wrong_dtype_raises():
  with pytest.raises(jaxtyping.TypeCheckError):
    masking.last_valid_index(jnp.ones([2, 3], jnp.float32))


def test_shapes_are_checked_under_jit():
  with pytest.raises(jaxtyping.TypeCheckError):
    jax.jit(losses.pairwise_loss)(jnp.zeros([4]), jnp.zeros([3]))


def test_int_stands_for_float():
  loss = losses.pairwise_loss(jnp.ones([2]), jnp.zeros([2]), centering=1)
  assert loss.shape == (2,)


def test_functions_without_shapes_are_checked():
  with pytest.raises(jaxtyping.TypeCheckError):
    stable_random.below(random.Random(0), 'three')


def test_functions_that_only_return_are_checked(monkeypatch):
  monkeypatch.setattr(stable_random, 'int', str, raising=False)
  with pytest.raises(jaxtyping.TypeCheckError):
    stable_random.below(random.Random(0), 3)


def test_dataclasses_are_checked():
  with pytest.raises(jaxtyping.TypeCheckError):
    optimizers.Optimizer(learning_rate='fast')


@pytest.mark.parametrize(
  ('hint', 'wanted'),
  [
    (int | None, False),
    (Callable[[int], Sequence[_Plain]], False),
    (Float[jax.Array, 'rows'], True),
    (Float[jax.Array, 'rows'] | None, True),
    (Callable[[Float[jax.Array, '']], int], True),
    (Callable[[int], PyTree], True),
    (Mapping[str, PyTree[Float[jax.Array, '...']]], True),
    (Sequence[_Array], True),
    ('Float[jax.Array, "rows"]', True),
    (Sequence['Float'], True),
  ],
)
def test_hints_that_say_shapes_are_found(hint, wanted):
  assert typechecking.says_shapes(hint) == wanted
