"""Measures how fast a device multiplies matrices and reads memory."""

from collections.abc import Callable
import dataclasses
import time

from absl import logging
import jax
import jax.numpy as jnp

# A shorter call is too short for the clock.
_LEAST_SECONDS = 0.05
_SMALLEST, _LARGEST = 512, 16384
_CALLS = 5
# Beyond any cache.
_FLOATS = 2**26


@dataclasses.dataclass(frozen=True)
class Machine:
  """The rates of a device on the simplest programs.

  Attributes:
    dtype: dtype of the matrix product.
    matmul_flops: FLOPs per second of a large matrix product.
    memory_bytes: bytes per second that adding 1 to an array reads and writes.
  """

  dtype: str
  matmul_flops: float
  memory_bytes: float

  def matmul_share(self, flops: float, seconds: float) -> float:
    """Returns a program's share of the rate of matrix products.

    Args:
      flops: FLOPs of all devices together.
      seconds: time of the program.
    """
    return flops / seconds / (self.matmul_flops * jax.device_count())

  def memory_share(self, bytes_read: float, seconds: float) -> float:
    """Returns a program's share of the rate of memory reads.

    Args:
      bytes_read: bytes read by all devices together.
      seconds: time of the program.
    """
    return bytes_read / seconds / (self.memory_bytes * jax.device_count())


def measure(dtype: jnp.dtype) -> Machine:
  """Measures a device; takes the best of several calls.

  Args:
    dtype: dtype of the matrix product, that of the model.
  """
  size = _SMALLEST
  while True:
    matrix = jnp.full((size, size), 1 / size, dtype)
    product = jax.jit(jnp.matmul)
    seconds = _best(lambda _, x=matrix, f=product: f(x, x), matrix)
    if seconds >= _LEAST_SECONDS or size >= _LARGEST:
      break
    size *= 2
  flops = 2 * size**3 / seconds
  # In place, else this would also measure the allocation of new pages.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  vector = jnp.zeros(_FLOATS, jnp.float32)
  memory = 2 * vector.nbytes / _best(add, vector)
  logging.info(
    'A device multiplies %d x %d matrices of %s at %.1f GFLOP/s, and reads and '
    'writes %.1f GB/s.',
    *(size, size, jnp.dtype(dtype).name, flops / 1e9, memory / 1e9),
  )
  return Machine(jnp.dtype(dtype).name, flops, memory)


def _best(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
  """Returns the seconds of the fastest call, after one that compiles.

  Args:
    function: called with its last result.
    x: the argument of the first call.
  """
  x = function(x).block_until_ready()
  best = float('inf')
  for _ in range(_CALLS):
    start = time.perf_counter()
    x = function(x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return best
