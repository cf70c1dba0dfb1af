"""Checks that a program fits into the free memory of the devices.

On a CPU the operating system would kill the process without a message.
"""

import jax

from perlhf_jax.core import errors
from perlhf_jax.core import host_memory


class NotEnoughMemoryError(errors.ConfigError):
  """A program needs more memory than a device has free.

  Attributes:
    needed_bytes: bytes per device that the program needs beside its arguments.
    free_bytes: bytes that are free per device.
  """

  needed_bytes = 0
  free_bytes = 0


def device_free_bytes() -> int | None:
  """Returns the free bytes per local device; None if they are unknown.

  CPU devices share the machine's memory equally.
  """
  devices = jax.local_devices()
  if devices[0].platform == 'cpu':
    return host_memory.free_bytes() // len(devices)
  known = [stats for d in devices if (stats := d.memory_stats())]
  left = [
    stats['bytes_limit'] - stats['bytes_in_use']
    for stats in known
    if 'bytes_limit' in stats
  ]
  return min(left, default=None)


def added_bytes(program: jax.stages.Compiled) -> int:
  """Returns the bytes per device that a program needs beside its arguments."""
  memory = program.memory_analysis()
  if jax.local_devices()[0].platform == 'tpu':
    # Not all temporaries live at once; other platforms report no such peak.
    return max(memory.peak_memory_in_bytes - memory.argument_size_in_bytes, 0)
  return (
    memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


def check_program(program: jax.stages.Compiled, name: str) -> None:
  """Refuses a program before it runs out of memory.

  Args:
    program: compiled program, whose arguments are already on the devices.
    name: name of the program, for the message.

  Raises:
    NotEnoughMemoryError: the program needs more memory than is free.
  """
  needed, free = added_bytes(program), device_free_bytes()
  if free is None or needed <= free:
    return
  error = NotEnoughMemoryError(
    f'{name} needs {host_memory.gibibytes(needed)} of memory per device '
    f'besides weights and batch, but only {host_memory.gibibytes(free)} are '
    'free. Give smaller batches, or shorter ones.'
  )
  error.needed_bytes, error.free_bytes = needed, free
  raise error
