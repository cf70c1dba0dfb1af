"""Free memory of this host, within the limits of its container."""

from collections.abc import Iterator
import pathlib

import psutil

# Memory of a container: folder, and names of limit, usage and the part of the
# usage that the kernel can reclaim.
_CGROUPS = (
  ('/sys/fs/cgroup', 'memory.max', 'memory.current', 'inactive_file'),
  (
    '/sys/fs/cgroup/memory',
    'memory.limit_in_bytes',
    'memory.usage_in_bytes',
    'total_inactive_file',
  ),
)


def free_bytes() -> int:
  """Returns the host memory, in bytes, that this process can still allocate."""
  return min([psutil.virtual_memory().available, *_left_in_containers()])


def gibibytes(count: int) -> str:
  """Formats a number of bytes in MiB or GiB."""
  if count < 2**29:
    return f'{count / 2**20:,.0f} MiB'
  return f'{count / 2**30:,.1f} GiB'


def _left_in_containers() -> Iterator[int]:
  for folder, limit, usage, reclaimable in _CGROUPS:
    try:
      most, used = (
        int((pathlib.Path(folder) / name).read_text())
        for name in (limit, usage)
      )
      statistics = (pathlib.Path(folder) / 'memory.stat').read_text()
    except (OSError, ValueError):
      continue  # No container, or one without a limit.
    counts = dict(line.split() for line in statistics.splitlines())
    yield max(most - used + int(counts.get(reclaimable, 0)), 0)
