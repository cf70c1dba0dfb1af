"""Stopping when told to: SIGTERM, which announces that a machine is taken away.

The training loop asks after every step, so that what it saves is the state of
a whole step, and the same one on every process.
"""

import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from perlhf_jax.training import multihost

# Who signals a whole group of processes may reach one of them twice.
_SAME_NOTICE_SECONDS = 1.0
_KILLED = 128 + signal.SIGTERM


class Notice:
  """Whether this run was told to stop; a context in which SIGTERM only says so.

  A second SIGTERM, a second or more after the first, ends the process at once.
  """

  def __init__(self):
    self._told_at: float | None = None
    self._answer: jax.Array | None = None
    self._vote = None if multihost.is_alone() else _Vote()

  def __enter__(self) -> 'Notice':
    """Takes SIGTERM over, if this is the main thread."""
    self._listens = threading.current_thread() is threading.main_thread()
    if not self._listens:
      return self
    # A handler in Python runs when the main thread is back from the devices;
    # the byte that a signal writes here is read at once.
    reading, self._writing = os.pipe()
    os.set_blocking(self._writing, False)
    self._wakeup = signal.set_wakeup_fd(
      self._writing, warn_on_full_buffer=False
    )
    self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(
      target=self._listen, args=[reading], name='sigterm', daemon=True
    ).start()
    return self

  def __exit__(self, *_) -> None:
    """Gives SIGTERM its former meaning back."""
    if not self._listens:
      return
    signal.signal(signal.SIGTERM, self._handler or signal.SIG_DFL)
    signal.set_wakeup_fd(self._wakeup)
    os.close(self._writing)

  def ask(self) -> None:
    """Asks all processes before a step, and does not wait for the answer."""
    if self._vote is not None:
      self._answer = self._vote(self._told_at is not None)

  def agreed(self) -> bool:
    """Whether to stop, after a step; the same on every process.

    With several processes it is the answer to the last `ask`, which is there
    when the devices have done the step before: they are not kept waiting.
    """
    if self._vote is None:
      return self._told_at is not None
    return bool(self._answer)

  def _listen(self, reading: int) -> None:
    """Notes when SIGTERM came; ends when the other end is closed."""
    with os.fdopen(reading, 'rb', buffering=0) as signals:
      while received := signals.read(1):
        if received[0] != signal.SIGTERM:
          continue
        now = time.monotonic()
        if self._told_at is None:
          self._told_at = now
        elif now - self._told_at > _SAME_NOTICE_SECONDS:
          os._exit(_KILLED)


class _Vote:
  """A collective operation: whether any of the processes says yes."""

  def __init__(self):
    mesh = Mesh(np.asarray(jax.devices()), ('devices',))
    self._split = NamedSharding(mesh, PartitionSpec('devices'))
    self._any = jax.jit(
      jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec())
    )

  def __call__(self, yes: bool) -> jax.Array:
    """Returns the largest answer, without waiting for it."""
    answer = np.full((jax.local_device_count(),), yes, np.int32)
    return self._any(
      jax.make_array_from_process_local_data(self._split, answer)
    )
