"""Memory of devices that is free, and programs that need more than that.

On a CPU the operating system would end the process without a word.
"""

import jax

from perlhf_jax.core import errors
from perlhf_jax.core import host_memory


class NotEnoughMemoryError(errors.ConfigError):
  """A program that a device has no room for.

  Attributes:
    needed_bytes: of a device, beside what it holds already.
    free_bytes: of a device.
  """

  needed_bytes = 0
  free_bytes = 0


def device_free_bytes() -> int | None:
  """Returns what each device of this process has free; None if it is unknown.

  The devices of a CPU share the machine's memory.
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
  """Returns what a device needs to run a program, beside its arguments."""
  memory = program.memory_analysis()
  if jax.local_devices()[0].platform == 'tpu':
    # Not all temporaries live at once there; elsewhere there is no such peak.
    return max(memory.peak_memory_in_bytes - memory.argument_size_in_bytes, 0)
  return (
    memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


def check_program(program: jax.stages.Compiled, name: str) -> None:
  """Refuses a program before it runs out of memory.

  Args:
    program: it; its arguments are on the devices.
    name: what it is, for the message.

  Raises:
    NotEnoughMemoryError: it needs more than is free.
  """
  needed, free = added_bytes(program), device_free_bytes()
  if free is None or needed <= free:
    return
  error = NotEnoughMemoryError(
    f'{name} needs {host_memory.gibibytes(needed)} of memory on a device '
    f'beside weights and batch, and {host_memory.gibibytes(free)} are free. '
    'Give smaller batches, or shorter ones.'
  )
  error.needed_bytes, error.free_bytes = needed, free
  raise error
