"""DoRA: adapters that learn the size of each output feature apart.

An adapted dense layer computes `x·W'` with

  W' = m · (W + s·A·B) / ||W + s·A·B||

where the norm is of each column, over the inputs, and `m` (`lora_m`, `[out]`)
has one magnitude per output feature. `m` starts at the norm of `W`, so that
training starts from the backbone. The norm is a constant in the gradient.

Source: Liu et al. 2024 (arXiv:2402.09353) eq. 5 and section 4.3; PEFT's
`DoraLinearLayer` is the same function. With dropout, PEFT also drops inputs of
`x·W` where it is scaled, which takes a second product with `W`. Here dropout is
of the adapter's input only, as for LoRA.

Training forms neither `A·B` nor a copy of `W`:

  ||W + s·A·B||² = ||W||² + 2s·⟨W, A·B⟩ + s²·||A·B||²

needs the products `Aᵀ·W`, `[rank, out]`, and `Aᵀ·A`, `[rank, rank]`. Where
`s·A·B` nearly cancels a column of `W`, only rounding is left of this sum. So it
is taken to be at least a rounding step of its parts, and the factor `m / ||·||`
is at most 2,900 times what it is without adapters.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing

MAGNITUDE = 'lora_m'
# A column of zeros has a gain, 0, and no NaN.
_LEAST_SQUARE = float(jnp.finfo(jnp.float32).tiny)
_ROUNDING = float(jnp.finfo(jnp.float32).eps)
_EXACT = jax.lax.Precision.HIGHEST


def gains(
  magnitudes: Float[typing.Array, ' outputs'],
  kernel: Float[typing.Array, 'inputs outputs'],
  a: Float[typing.Array, 'inputs rank'],
  b: Float[typing.Array, 'rank outputs'],
  scale: float,
) -> Float[jax.Array, ' outputs']:
  """Returns the factor `m / ||W + s·A·B||` on each output, in float32.

  Its gradient is that of `m`; the norm has none.
  """
  kernel, a, b = (
    jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (kernel, a, b)
  )
  crossed = jnp.dot(a.T, kernel, precision=_EXACT)
  gram = jnp.dot(a.T, a, precision=_EXACT)
  within = jnp.dot(gram, b, precision=_EXACT)
  of_kernel = jnp.sum(jnp.square(kernel), axis=0)
  of_update = scale**2 * jnp.sum(within * b, axis=0)
  square = of_kernel + 2 * scale * jnp.sum(crossed * b, axis=0) + of_update
  least = jnp.maximum(_ROUNDING * (of_kernel + of_update), _LEAST_SQUARE)
  return magnitudes / jnp.sqrt(jnp.maximum(square, least))


def normalized(
  matrix: Float[typing.Array, '*layers inputs outputs'],
  magnitudes: Float[typing.Array, '*layers outputs'],
) -> Float[jax.Array, '*layers inputs outputs']:
  """Returns a matrix whose columns have the given norms."""
  norms = jnp.maximum(_norms(matrix), _LEAST_SQUARE**0.5)
  return matrix * (magnitudes / norms)[..., None, :]


def with_first_magnitudes(
  lora: Mapping[str, Any],
  params: Mapping[str, Any],
  shardings: Mapping[str, Any],
) -> dict[str, Any]:
  """Sets every `lora_m` to the norms of the kernel that it scales.

  Args:
    lora: adapters as they are initialised; unchanged if they have no `lora_m`.
    params: the backbone that they adapt, in the dtype in which it is held.
    shardings: shardings of `lora`.
  """
  flat, places = tree_paths.flatten(lora), tree_paths.flatten(shardings)
  kernels = tree_paths.flatten(params)
  adapted = {
    path: kernels[path.removesuffix(f'lora/{MAGNITUDE}') + 'kernel']
    for path in flat
    if path.endswith(f'/{MAGNITUDE}')
  }
  if not adapted:
    return dict(lora)
  norms = jax.jit(
    lambda adapted: {path: _norms(kernel) for path, kernel in adapted.items()},
    out_shardings={path: places[path] for path in adapted},
  )(adapted)
  return tree_paths.unflatten(flat | norms)


def _norms(matrix):
  """Returns the norms of columns in float32."""
  return jnp.sqrt(jnp.sum(jnp.square(matrix.astype(jnp.float32)), axis=-2))
