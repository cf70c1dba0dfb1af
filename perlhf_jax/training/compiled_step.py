"""A jitted function, compiled ahead of time once per batch shape.

Ahead-of-time compilation gives the compiler's memory analysis, and keeps
compilation out of the measured throughput.
"""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import Any

from absl import logging
import jax

from perlhf_jax.training import memory as memory_lib
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning

_watchers: list[Callable[[jax.stages.Traced], None]] = []


@contextlib.contextmanager
def watch(watcher: Callable[[jax.stages.Traced], None]) -> Iterator[None]:
  """Shows `watcher` every program that the block calls.

  Args:
    watcher: called before each program runs, with its trace.
  """
  _watchers.append(watcher)
  try:
    yield
  finally:
    _watchers.remove(watcher)


class CompiledStep:
  """Calls a function on the mesh, and compiles it for new shapes.

  Attributes:
    memory_bytes: bytes per device of the largest program so far: arguments,
      outputs and temporaries; donated buffers count once.
    newly_compiled: whether the last call compiled.
  """

  def __init__(
    self,
    function: Callable[..., Any],
    mesh: partitioning.LogicalMesh,
    *,
    name: str,
    donate_argnums: tuple[int, ...] = (),
    out_shardings: Any = None,
  ):
    """Wraps a function.

    Args:
      function: takes pytrees of arrays; its last argument is the batch, and
        each new set of batch shapes gets a program.
      mesh: the mesh to trace under.
      name: name of the function in the log.
      donate_argnums: arguments whose buffers the outputs may reuse.
      out_shardings: shardings of the outputs; None lets the compiler choose.
    """
    options = {} if out_shardings is None else {'out_shardings': out_shardings}
    self._jitted = jax.jit(function, donate_argnums=donate_argnums, **options)
    self._mesh = mesh
    self._name = name
    self._programs: dict[Any, Any] = {}
    self.memory_bytes = 0
    self.newly_compiled = False

  def __call__(self, *arguments: Any) -> Any:
    """Runs the function.

    Raises:
      NotEnoughMemoryError: the program for these shapes needs more memory
        than is free; raised on all hosts.
    """
    shapes = tuple((name, x.shape) for name, x in _named(arguments[-1]))
    self.newly_compiled = shapes not in self._programs
    if self.newly_compiled:
      self._programs[shapes] = self._compile(arguments)
    for watcher in _watchers:
      watcher(self._trace(*arguments))
    return self._programs[shapes](*arguments)

  def lower(self, *arguments: Any) -> jax.stages.Lowered:
    """Lowers the function on the mesh, for arrays or `ShapeDtypeStruct`s."""
    return self._trace(*arguments).lower()

  def _trace(self, *arguments):
    with partitioning.use_mesh(self._mesh):
      return self._jitted.trace(*arguments)

  def _compile(self, arguments):
    start = time.perf_counter()
    program = self.lower(*arguments).compile()
    memory = program.memory_analysis()
    memory_bytes = (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes
      - memory.alias_size_in_bytes
    )
    self.memory_bytes = max(self.memory_bytes, memory_bytes)
    logging.info(
      'Compiled %s in %.1f s; %.1f MiB per device%s.',
      self._name,
      time.perf_counter() - start,
      memory_bytes / 2**20,
      _tokens(arguments[-1]),
    )
    with multihost.together():
      memory_lib.check_program(program, self._name)
    return program


def _named(batch) -> list[tuple[str, Any]]:
  """Returns the arrays of a batch with their names."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='_'), x)
    for path, x in jax.tree_util.tree_leaves_with_path(batch)
  ]


def _tokens(batch) -> str:
  """Describes a program's batch by the shapes of its token arrays."""
  shapes = [
    f'{name} {"x".join(map(str, x.shape))}'
    for name, x in _named(batch)
    if name.endswith('_tokens')
  ]
  return f', for {", ".join(shapes)}' if shapes else ''
