"""Tests that the shapes and dtypes of our functions are really checked."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from perlhf_jax.core import masking
from perlhf_jax.objectives import losses


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
