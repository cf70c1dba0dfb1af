"""Compiles a program for devices that are not here, and returns its memory."""

from collections.abc import Mapping
import re
import time
from typing import Any

import jax

from perlhf_jax.plan import programs as programs_lib

# Compiler options by level. libtpu's O0, which it takes by number, skips passes
# that make programs fast. It gives nearly the same memory in a fifth of the
# time.
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
  """Compiles a program and reads the compiler's memory analysis.

  A device must hold `peak_bytes`, which include arguments, plus `held_bytes`.
  `temp_bytes` can exceed the temporaries of any one moment. So arguments,
  temporaries and held bytes may exceed the limit although the peak does not.
  Such a row is `doubtful`, since nothing here has run on a TPU.

  Args:
    program: the program.
    limit_bytes: memory of a device that it may use.
    options: compiler options from `OPTIONS`.

  Returns:
    `program`, `argument_bytes`, `expected_argument_bytes` (summed from shapes),
    `temp_bytes`, `peak_bytes`, `held_bytes` (weights and optimizer states that
    wait for other programs), `limit_bytes`, `fits`, `doubtful` and
    `compile_seconds`. If the compiler refused the program, the peak is from its
    error message, and `temp_bytes` is None.
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
  """Reads the memory that a program needs from a compiler error.

  Args:
    message: message of the error.

  Returns:
    Bytes, or None if it is another error.
  """
  for pattern in _TOO_LARGE:
    match = pattern.search(message)
    if match:
      return int(float(match[1]) * _UNITS[match[2]])
  return None
