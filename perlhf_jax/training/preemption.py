"""Stopping when told to: SIGTERM, which announces that a machine is taken away.

The training loop asks after every step, so that what it saves is the state of
a whole step, and the same one on every process. A user's function that is at
work meanwhile is not waited for, see `interruptible`.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import signal
import threading
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import sigterm
from perlhf_jax.training import multihost

# Who signals a whole group of processes may reach one of them twice.
_SAME_NOTICE_SECONDS = 1.0
_KILLED = 128 + signal.SIGTERM
# How long a function may go on that was interrupted, in native code that does
# not return, for example.
_INTERRUPTED_SECONDS = 10.0
# Nobody uses it: SIGALRM is what rewards of others stop their own work by.
_TIME_IS_UP = getattr(signal, 'SIGRTMAX', signal.SIGUSR2)


class Notice:
  """Whether this run was told to stop; a context in which SIGTERM only says so.

  A second SIGTERM, a second or more after the first, ends the process at once.
  """

  def __init__(self):
    self._told_at: float | None = None
    self._answer: jax.Array | None = None
    self._vote = None if multihost.is_alone() else _Vote()
    self._listener = sigterm.Listener(self._note, _interrupt)

  def __enter__(self) -> 'Notice':
    """Takes SIGTERM over, if this is the main thread."""
    self._listener.__enter__()
    _notices.append(self)
    return self

  def __exit__(self, *_) -> None:
    """Gives SIGTERM its former meaning back."""
    _notices.remove(self)
    self._listener.__exit__()

  @property
  def is_told(self) -> bool:
    """Whether this process was told to stop, whatever the others were."""
    return self._told_at is not None

  def ask(self) -> None:
    """Asks all processes before a step, and does not wait for the answer."""
    if self._vote is not None:
      self._answer = self._vote(self.is_told)

  def agreed(self) -> bool:
    """Whether to stop, after a step; the same on every process.

    With several processes it is the answer to the last `ask`, which is there
    when the devices have done the step before: they are not kept waiting.
    """
    if self._vote is None:
      return self.is_told
    return bool(self._answer)

  def _note(self) -> None:
    """Notes when SIGTERM came."""
    now = time.monotonic()
    if self._told_at is None:
      self._told_at = now
      for call in _calls[-1:]:
        call.must_end(
          errors.GOES_ON,
          'stopped by SIGTERM; {} cannot be interrupted, so that nothing was '
          'saved after the newest checkpoint. Started again, the same command '
          'goes on from there.',
        )
    elif now - self._told_at > _SAME_NOTICE_SECONDS:
      sigterm.leave(_KILLED)


# Those that listen, the innermost last.
_notices: list[Notice] = []


@contextlib.contextmanager
def interruptible(what: str, seconds: float | None = None) -> Iterator[None]:
  """A block of a user's code, which does not outlive SIGTERM or its time.

  Within a `Notice` the first SIGTERM ends the block, and so does one that came
  before. Code that does not return to Python, or catches everything, ends the
  process some seconds later instead. Outside of the main thread, where nothing
  can be interrupted, the block runs to its end.

  Args:
    what: is called, for messages: `the reward function my.reward`.
    seconds: that it may take; None for any time.

  Raises:
    PreemptedError: SIGTERM came.
    DataError: it took longer.
  """
  if not sigterm.is_main_thread():
    yield
    return
  call = _Call(what)
  timer = None
  try:
    try:
      _calls.append(call)
      if seconds is not None:
        # It stays: a signal that comes late must not end the process.
        signal.signal(_TIME_IS_UP, _end_in_time)
        timer = _start_timer(seconds, call.time_is_up)
      if _notices and _notices[-1].is_told:
        _interrupt()
      yield
    finally:
      call.close(timer)
  except BaseException as error:
    call.close(timer)  # What ended the block may have come within the first.
    # The block may have made another error of it.
    if call.ended_by is _Interrupted:
      raise errors.PreemptedError(
        f'stopped by SIGTERM in {what}. Started again, the same command goes '
        'on.'
      ) from error
    if call.ended_by is _TimeIsUp:
      raise errors.DataError(
        f'{_capital(what)} took longer than the {seconds:g} seconds that '
        'REWARD_TIME_LIMIT allows a call. Make it answer or give up in time, '
        'or set a larger limit.'
      ) from error
    raise


class _Interrupted(BaseException):
  """Raised in a block by SIGTERM; no Exception, which the block may catch."""


class _TimeIsUp(BaseException):
  """Raised in a block when its time is up."""


@dataclasses.dataclass
class _Call:
  """A block that is being run.

  Attributes:
    what: of `interruptible`.
    is_late: whether its time is up.
    is_over: whether it has ended.
    ended_by: what was raised in it from outside, if anything.
  """

  what: str
  is_late: bool = False
  is_over: bool = False
  ended_by: type[BaseException] | None = None

  def must_end(self, code: int, message: str) -> None:
    """Ends the process unless the block ends soon; `{}` stands for it."""
    _start_timer(_INTERRUPTED_SECONDS, self._end_process, code, message)

  def time_is_up(self) -> None:
    """Interrupts the block, in a thread of the timer."""
    if self.is_over:
      return
    self.is_late = True
    self.must_end(
      errors.UserError.exit_code,
      'error: {} took longer than REWARD_TIME_LIMIT allows, and cannot be '
      'interrupted. The newest checkpoint is kept; nothing after it was saved.',
    )
    # A signal, since nothing else wakes a thread that waits for the system.
    signal.pthread_kill(threading.main_thread().ident, _TIME_IS_UP)

  def end(self, by: type[BaseException]) -> None:
    """Raises in the block, once, in the main thread."""
    if not self.is_over and self.ended_by is None:
      self.ended_by = by
      raise by

  def close(self, timer: threading.Timer | None) -> None:
    """Ends the time in which the block can be interrupted."""
    self.is_over = True
    _calls[:] = [each for each in _calls if each is not self]
    if timer is not None:
      timer.cancel()

  def _end_process(self, code: int, message: str) -> None:
    if not self.is_over:
      sigterm.leave(code, message.format(self.what))


# Blocks that are being run, the innermost last.
_calls: list[_Call] = []


def _interrupt() -> None:
  """Raises in the block that is being run, if there is one."""
  if _calls:
    _calls[-1].end(_Interrupted)


def _end_in_time(*_) -> None:
  """Raises in the block that is being run, if its time is up."""
  if _calls and _calls[-1].is_late:
    _calls[-1].end(_TimeIsUp)


def _start_timer(seconds: float, function, *arguments) -> threading.Timer:
  timer = threading.Timer(seconds, function, arguments)
  timer.daemon = True
  timer.start()
  return timer


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]


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
