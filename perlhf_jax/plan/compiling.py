"""Compiles a program for devices that are not here; says what it needs."""

from collections.abc import Mapping
import re
import time
from typing import Any

import jax

from perlhf_jax.plan import programs as programs_lib

# What may be given to `compile_program`. libtpu's O0, which it takes by number,
# leaves out passes that make programs fast, and says much the same about memory
# in a fifth of the time.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
  'cheap': {'optimization_level': 9},
  'default': {},
}

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_SIZE = r'([\d.]+)([KMGT]?)'
_TOO_LARGE = (
  re.compile(rf'\({_SIZE}\) exceeds available HBM \({_SIZE}\)'),
  re.compile(rf'Used {_SIZE} of {_SIZE} hbm'),
)

Row = dict[str, Any]


def compile_program(
  program: programs_lib.Program,
  limit_bytes: int,
  options: Mapping[str, Any],
) -> Row:
  """Compiles a program and reads the compiler's account of memory.

  A device has to hold `peak_bytes`, arguments included, and `held_bytes`
  beside. `temp_bytes` can be more than the temporaries of one moment, so that
  with the arguments they may exceed the limit where the peak does not: such a
  row is `doubtful`, since nothing here has run on a TPU.

  Args:
    program: the program.
    limit_bytes: what it may use of a device.
    options: the compiler's, of `OPTIONS`.

  Returns:
    `program`, `argument_bytes`, `expected_argument_bytes` (added up from
    shapes), `temp_bytes`, `peak_bytes`, `held_bytes` (weights and optimizer
    states that wait for other programs), `limit_bytes`, `fits`, `doubtful`
    and `compile_seconds`. Of a program that the compiler refused, the peak is
    what it says of it, and temporaries are None.
  """
  start = time.perf_counter()
  lowered = program.lower()
  memory, needed = None, None
  try:
    memory = lowered.compile(compiler_options=dict(options)).memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    needed = bytes_needed(str(error))
    if needed is None:
      raise
  seconds = time.perf_counter() - start
  if memory is None:
    arguments, temporaries, peak = program.argument_bytes, None, needed
  else:
    arguments = memory.argument_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    peak = memory.peak_memory_in_bytes
  held = max(program.resident_bytes - arguments, 0)
  fits = memory is not None and peak + held <= limit_bytes
  return {
    'program': program.name,
    'argument_bytes': arguments,
    'expected_argument_bytes': program.argument_bytes,
    'temp_bytes': temporaries,
    'peak_bytes': peak,
    'held_bytes': held,
    'limit_bytes': limit_bytes,
    'fits': fits,
    'doubtful': fits and arguments + temporaries + held > limit_bytes,
    'compile_seconds': round(seconds, 1),
  }


def bytes_needed(message: str) -> int | None:
  """Reads from an error how much memory a program asked for.

  Args:
    message: of the compiler.

  Returns:
    Bytes, or None if it is another error.
  """
  for pattern in _TOO_LARGE:
    match = pattern.search(message)
    if match:
      return int(float(match[1]) * _UNITS[match[2]])
  return None
