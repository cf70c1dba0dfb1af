"""Memory of this machine that is free, limits of containers included."""

from collections.abc import Iterator
import pathlib

import psutil

# Limits of a container: folder, limit, usage, and what of it can be taken back.
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
  """Returns what this process may still take of this machine's memory."""
  return min([psutil.virtual_memory().available, *_left_in_containers()])


def gibibytes(count: int) -> str:
  """Writes a number of bytes for people."""
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
      continue  # There is none, or it has no limit.
    counts = dict(line.split() for line in statistics.splitlines())
    yield max(most - used + int(counts.get(reclaimable, 0)), 0)
