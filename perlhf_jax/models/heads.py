"""Scalar heads on decoder states."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import typing


class ScalarHead(nn.Module):
  """A linear map to one number per state, in float32 for every backbone.

  The paper does not describe its head; this is the common choice.

  Attributes:
    kernel_init: initializer of the kernel.
  """

  kernel_init: Callable[..., Any] = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'normal'
  )

  @nn.compact
  def __call__(
    self, hidden: Float[typing.Array, '*shape embed']
  ) -> Float[jax.Array, '*shape']:
    """Maps `[..., embed]` to float32 `[...]`."""
    hidden = jnp.asarray(hidden, jnp.float32)
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(self.kernel_init, ('embed', None)),
      (hidden.shape[-1], 1),
      jnp.float32,
    )
    bias = self.param('bias', nn.initializers.zeros, (1,), jnp.float32)
    # By default a TPU would multiply in bfloat16.
    product = jnp.dot(hidden, kernel, precision=jax.lax.Precision.HIGHEST)
    return (product + bias)[..., 0]
