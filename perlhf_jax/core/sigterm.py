"""Handles SIGTERM at once, whatever the main thread is doing.

Python runs its signal handlers only when the main thread returns from the
compiler, the devices or a library, which may take minutes. Here a separate
thread receives the signal.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import sys
import threading
from typing import NoReturn

# Cleanup at the end may hang, for example on a network disk.
_TIDYING_SECONDS = 2.0

_at_end: list[Callable[[], None]] = []
# The process's stderr, even while `logs.without_noise` holds back output.
_stderr = 2


class Listener:
  """A context in which SIGTERM calls a function instead of ending the process.

  An inner context takes over the signal from an outer one. Only the main thread
  can listen; in another thread the context does nothing.
  """

  def __init__(
    self,
    told: Callable[[], None],
    in_main_thread: Callable[[], None] = lambda: None,
  ):
    """Makes a listener.

    Args:
      told: called at each signal, in a separate thread.
      in_main_thread: called in the main thread as soon as it runs Python code
        again; may raise.
    """
    self._told = told
    self._in_main_thread = in_main_thread
    self._listens = False

  def __enter__(self) -> 'Listener':
    """Takes over SIGTERM, if this is the main thread."""
    self._listens = is_main_thread()
    if not self._listens:
      return self
    # Each signal writes a byte to this pipe, which `_listen` reads at once.
    reading, self._writing = os.pipe()
    os.set_blocking(self._writing, False)
    self._wakeup = signal.set_wakeup_fd(
      self._writing, warn_on_full_buffer=False
    )
    self._handler = signal.signal(
      signal.SIGTERM, lambda *_: self._in_main_thread()
    )
    threading.Thread(
      target=self._listen, args=[reading], name='sigterm', daemon=True
    ).start()
    return self

  def __exit__(self, *_) -> None:
    """Restores the former handling of SIGTERM."""
    if not self._listens:
      return
    signal.signal(signal.SIGTERM, self._handler or signal.SIG_DFL)
    signal.set_wakeup_fd(self._wakeup)
    os.close(self._writing)

  def _listen(self, reading: int) -> None:
    """Waits for signals until the other end of the pipe is closed."""
    with os.fdopen(reading, 'rb', buffering=0) as signals:
      while received := signals.read(1):
        if received[0] == signal.SIGTERM:
          self._told()


@contextlib.contextmanager
def ends(code: int, message: str) -> Iterator[None]:
  """Makes SIGTERM end the process at once, with a message, within the block.

  Args:
    code: exit code.
    message: for stderr.
  """
  global _stderr
  sys.stderr.flush()
  before, _stderr = _stderr, os.dup(2)
  try:
    with Listener(lambda: leave(code, message)):
      yield
  finally:
    os.close(_stderr)
    _stderr = before


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Restores SIGTERM's handler, which libtpu replaces when it is loaded."""
  handler = signal.getsignal(signal.SIGTERM)
  yield
  if is_main_thread() and handler is not None:
    signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def tidied(tidy: Callable[[], None]) -> Iterator[None]:
  """Runs a cleanup at the end of the block, or when `leave` is called in it.

  Args:
    tidy: the cleanup; `leave` may cut it short.
  """
  _at_end.append(tidy)
  try:
    yield
  finally:
    _at_end.remove(tidy)
    tidy()


def leave(code: int, message: str | None = None) -> NoReturn:
  """Ends the process at once, from any thread.

  Args:
    code: exit code.
    message: for stderr.
  """
  if message:
    # Not by print: the main thread may hold the lock of a stream.
    with contextlib.suppress(OSError):
      os.write(_stderr, f'perlhf: {message}\n'.encode())
  tidying = threading.Thread(target=_tidy, daemon=True)
  tidying.start()
  tidying.join(_TIDYING_SECONDS)
  os._exit(code)


def is_main_thread() -> bool:
  """Returns whether this is the thread that runs Python's signal handlers."""
  return threading.current_thread() is threading.main_thread()


def _tidy() -> None:
  for tidy in reversed(_at_end):
    with contextlib.suppress(Exception):
      tidy()
