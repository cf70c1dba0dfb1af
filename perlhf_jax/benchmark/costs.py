"""The FLOPs and memory reads of a program, counted in its jaxpr.

Counts matrix products and convolutions, including the backward pass and what it
recomputes. The body of a loop counts once per turn. The compiler's own count
takes one turn per loop, and on some machines omits the libraries that it calls.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
from typing import Any

import jax
from jax.extend import core as jax_core

# Primitives whose result is their first argument: unchanged, in another layout
# or dtype, a part of it, or with a part overwritten.
_HANDS_ON = frozenset(
  (
    'broadcast_in_dim',
    'convert_element_type',
    'copy',
    'dynamic_slice',
    'dynamic_update_slice',
    'reshape',
    'sharding_constraint',
    'slice',
    'squeeze',
    'transpose',
  )
)


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of programs, on all devices together.

  Attributes:
    flops: FLOPs outside loops whose number of turns is only known at run time.
    flops_per_turn: FLOPs per turn of such loops, such as the sampler's.
    bytes_per_turn: bytes that such a turn must read: the weights and caches in
      its products, each once.
  """

  flops: float = 0.0
  flops_per_turn: float = 0.0
  bytes_per_turn: float = 0.0

  def __add__(self, other: 'Cost') -> 'Cost':
    return Cost(
      self.flops + other.flops,
      self.flops_per_turn + other.flops_per_turn,
      self.bytes_per_turn + other.bytes_per_turn,
    )

  def times(self, count: float) -> 'Cost':
    """Returns the cost of several calls."""
    return Cost(
      *(count * getattr(self, field.name) for field in dataclasses.fields(self))
    )

  def total_flops(self, turns: float) -> float:
    """Returns the FLOPs if the loops of unknown length made `turns` turns."""
    return self.flops + turns * self.flops_per_turn


def count(traced: jax.stages.Traced) -> Cost:
  """Counts the cost of a program."""
  return _cost(traced.jaxpr.jaxpr)


def _cost(jaxpr: jax_core.Jaxpr) -> Cost:
  total = Cost()
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      total += Cost(_product(equation))
    elif name == 'conv_general_dilated':
      total += Cost(_convolution(equation))
    elif name == 'scan':
      total += _cost(params['jaxpr'].jaxpr).times(params['length'])
    elif name == 'while':
      body = params['body_jaxpr'].jaxpr
      turn = _cost(body)
      total += Cost(0.0, turn.flops, turn.bytes_per_turn + _bytes_read(body))
    elif name == 'cond':
      branches = [_cost(branch.jaxpr) for branch in params['branches']]
      total += max(branches, key=lambda cost: cost.flops)
    else:
      for inner in _inner(params):
        total += _cost(inner)
  return total


def _product(equation) -> float:
  """Returns the FLOPs of a matrix product: two per multiplication."""
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  size = math.prod(equation.outvars[0].aval.shape)
  return 2.0 * size * math.prod(left[axis] for axis in contracted)


def _convolution(equation) -> float:
  kernel = equation.invars[1].aval.shape
  features = equation.params['dimension_numbers'].rhs_spec[0]
  size = math.prod(equation.outvars[0].aval.shape)
  return 2.0 * size * math.prod(kernel) / kernel[features]


def _inner(params: Mapping[str, Any]) -> Iterable[jax_core.Jaxpr]:
  """Yields the programs that an equation calls."""
  for value in params.values():
    if isinstance(value, jax_core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, jax_core.Jaxpr):
      yield value


def _bytes_read(body: jax_core.Jaxpr) -> float:
  """Returns the bytes of a loop's arguments that its products read."""
  read = set()
  _follow(body, list(range(len(body.invars))), read.add)
  avals = [body.invars[index].aval for index in read]
  return float(sum(math.prod(a.shape) * a.dtype.itemsize for a in avals))


def _follow(
  jaxpr: jax_core.Jaxpr,
  origins: list[int | None],
  read: Callable[[int], None],
) -> list[int | None]:
  """Finds the arguments of the outermost program that matrix products read.

  Args:
    jaxpr: a program within the outermost one.
    origins: for each argument of `jaxpr`, the index of the outermost argument
      that it holds, or None.
    read: called with the index of each outermost argument that a product reads.

  Returns:
    For each result, the index of the outermost argument that it holds, or None.
  """
  known = dict(zip(jaxpr.invars, origins, strict=True))

  def origin(variable):
    is_literal = isinstance(variable, jax_core.Literal)
    return None if is_literal else known.get(variable)

  for equation in jaxpr.eqns:
    given = [origin(variable) for variable in equation.invars]
    results = [None] * len(equation.outvars)
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      for number in given:
        if number is not None:
          read(number)
    elif name in _HANDS_ON:
      results[0] = given[0]
    elif name != 'while':  # `_cost` counts the arguments of a nested loop.
      for inner in _inner(params):
        if len(inner.invars) == len(given):
          results = _follow(inner, given, read)
    for variable, number in zip(equation.outvars, results, strict=False):
      known[variable] = number
  return [origin(variable) for variable in jaxpr.outvars]
