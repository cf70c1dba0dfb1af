"""Stops a run on SIGTERM, which announces the preemption of a machine.

The training loop checks after every step, so that every process saves the state
of the same complete step. It does not wait for a user's function that is
running, see `interruptible`.
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

# A signal to a group of processes may reach one of them twice.
_SAME_NOTICE_SECONDS = 1.0
_KILLED = 128 + signal.SIGTERM
# How long an interrupted function may go on, for example in native code that
# does not return.
_INTERRUPTED_SECONDS = 10.0
# An unused signal: users' reward functions may use SIGALRM for their timeouts.
_TIME_IS_UP = getattr(signal, 'SIGRTMAX', signal.SIGUSR2)


class Notice:
  """A context in which SIGTERM is noted, and does not end the process.

  A second SIGTERM, a second or more after the first, ends the process at once.
  """

  def __init__(self):
    self._told_at: float | None = None
    self._answer: jax.Array | None = None
    self._vote = None if multihost.is_alone() else _Vote()
    self._listener = sigterm.Listener(self._note, _interrupt)

  def __enter__(self) -> 'Notice':
    """Installs the SIGTERM handler, if this is the main thread."""
    self._listener.__enter__()
    _notices.append(self)
    return self

  def __exit__(self, *_) -> None:
    """Restores the former SIGTERM handler."""
    _notices.remove(self)
    self._listener.__exit__()

  @property
  def is_told(self) -> bool:
    """Whether this process received SIGTERM."""
    return self._told_at is not None

  def ask(self) -> None:
    """Starts a vote of all processes before a step, without waiting for it."""
    if self._vote is not None:
      self._answer = self._vote(self.is_told)

  def agreed(self) -> bool:
    """Returns whether to stop after a step; the same on every process.

    With several processes it is the result of the last `ask`. The result is
    ready when the devices have finished the step before, so that they are not
    kept waiting.
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
          'stopped by SIGTERM; {} cannot be interrupted, so nothing was saved '
          'after the newest checkpoint. Start the same command again to go on '
          'from there.',
        )
    elif now - self._told_at > _SAME_NOTICE_SECONDS:
      sigterm.leave(_KILLED)


# Active notices, the innermost last.
_notices: list[Notice] = []


@contextlib.contextmanager
def interruptible(what: str, seconds: float | None = None) -> Iterator[None]:
  """Runs a block of user code, which SIGTERM or a time limit interrupts.

  Within a `Notice`, SIGTERM ends the block, even if it came before the block.
  If the code does not return to Python, or catches every exception, the process
  ends some seconds later. Outside the main thread the block cannot be
  interrupted, and runs to its end.

  Args:
    what: name of the code, for messages: `the reward function my.reward`.
    seconds: time limit of the block; None for no limit.

  Raises:
    PreemptedError: SIGTERM interrupted the block.
    DataError: the block took longer than `seconds`.
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
        # The handler stays installed, so that a late signal does no harm.
        signal.signal(_TIME_IS_UP, _end_in_time)
        timer = _start_timer(seconds, call.time_is_up)
      if _notices and _notices[-1].is_told:
        _interrupt()
      yield
    finally:
      call.close(timer)
  except BaseException as error:
    call.close(timer)  # The interruption may have cut the first `close` short.
    # The block may have turned the interruption into another error.
    if call.ended_by is _Interrupted:
      raise errors.PreemptedError(
        f'stopped by SIGTERM in {what}. Start the same command again to go on.'
      ) from error
    if call.ended_by is _TimeIsUp:
      raise errors.DataError(
        f'{_capital(what)} took longer than the {seconds:g} seconds that '
        'REWARD_TIME_LIMIT allows per call. Make it answer or give up in '
        'time, or set a larger limit.'
      ) from error
    raise


class _Interrupted(BaseException):
  """Raised in a block on SIGTERM; `except Exception` does not catch it."""


class _TimeIsUp(BaseException):
  """Raised in a block when its time is up."""


@dataclasses.dataclass
class _Call:
  """A running block of `interruptible`.

  Attributes:
    what: name of the code, for messages.
    is_late: whether the time limit has passed.
    is_over: whether the block has ended.
    ended_by: exception that interrupted the block, if any.
  """

  what: str
  is_late: bool = False
  is_over: bool = False
  ended_by: type[BaseException] | None = None

  def must_end(self, code: int, message: str) -> None:
    """Ends the process unless the block ends soon; `{}` is the block's name."""
    _start_timer(_INTERRUPTED_SECONDS, self._end_process, code, message)

  def time_is_up(self) -> None:
    """Interrupts the block; called in the timer's thread."""
    if self.is_over:
      return
    self.is_late = True
    self.must_end(
      errors.UserError.exit_code,
      'error: {} took longer than REWARD_TIME_LIMIT allows, and cannot be '
      'interrupted. The newest checkpoint is kept; nothing after it was saved.',
    )
    # Only a signal interrupts a system call of the main thread.
    signal.pthread_kill(threading.main_thread().ident, _TIME_IS_UP)

  def end(self, by: type[BaseException]) -> None:
    """Raises in the block, once, in the main thread."""
    if not self.is_over and self.ended_by is None:
      self.ended_by = by
      raise by

  def close(self, timer: threading.Timer | None) -> None:
    """Marks the block as over, so that nothing interrupts it any more."""
    self.is_over = True
    _calls[:] = [each for each in _calls if each is not self]
    if timer is not None:
      timer.cancel()

  def _end_process(self, code: int, message: str) -> None:
    if not self.is_over:
      sigterm.leave(code, message.format(self.what))


# Running blocks, the innermost last.
_calls: list[_Call] = []


def _interrupt() -> None:
  """Interrupts the innermost running block, if there is one."""
  if _calls:
    _calls[-1].end(_Interrupted)


def _end_in_time(*_) -> None:
  """Interrupts the innermost running block, if its time is up."""
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
  """A collective operation: whether any process says yes."""

  def __init__(self):
    mesh = Mesh(np.asarray(jax.devices()), ('devices',))
    self._split = NamedSharding(mesh, PartitionSpec('devices'))
    self._any = jax.jit(
      jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec())
    )

  def __call__(self, yes: bool) -> jax.Array:
    """Returns the maximum of the answers, without waiting for it."""
    answer = np.full((jax.local_device_count(),), yes, np.int32)
    return self._any(
      jax.make_array_from_process_local_data(self._split, answer)
    )
