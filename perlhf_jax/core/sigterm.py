"""SIGTERM, heard at once, whatever the main thread is doing.

Python's own handlers run when the main thread is back from the compiler, the
devices or a library, which may take minutes. Here a thread hears the signal.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import sys
import threading
from typing import NoReturn

# What is tidied up at the end may hang, on a network disk for example.
_TIDYING_SECONDS = 2.0

_at_end: list[Callable[[], None]] = []
# Of the process, even while `logs.without_noise` holds back what is printed.
_stderr = 2


class Listener:
  """A context in which SIGTERM calls a function instead of ending the process.

  An inner context takes the signal over from an outer one. Outside of the main
  thread, which alone may listen, a context does nothing.
  """

  def __init__(
    self,
    told: Callable[[], None],
    in_main_thread: Callable[[], None] = lambda: None,
  ):
    """Makes a listener.

    Args:
      told: called at each signal, in a thread of its own.
      in_main_thread: called between two lines of the main thread, as soon as
        it gets there, and may raise.
    """
    self._told = told
    self._in_main_thread = in_main_thread
    self._listens = False

  def __enter__(self) -> 'Listener':
    """Takes SIGTERM over, if this is the main thread."""
    self._listens = is_main_thread()
    if not self._listens:
      return self
    # The byte that a signal writes here is read at once.
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
    """Gives SIGTERM its former meaning back."""
    if not self._listens:
      return
    signal.signal(signal.SIGTERM, self._handler or signal.SIG_DFL)
    signal.set_wakeup_fd(self._wakeup)
    os.close(self._writing)

  def _listen(self, reading: int) -> None:
    """Waits for signals; ends when the other end is closed."""
    with os.fdopen(reading, 'rb', buffering=0) as signals:
      while received := signals.read(1):
        if received[0] == signal.SIGTERM:
          self._told()


@contextlib.contextmanager
def ends(code: int, message: str) -> Iterator[None]:
  """In the block SIGTERM ends the process at once, with a message.

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
  """Gives SIGTERM its handler back, which libtpu replaces when it is loaded."""
  handler = signal.getsignal(signal.SIGTERM)
  yield
  if is_main_thread() and handler is not None:
    signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def tidied(tidy: Callable[[], None]) -> Iterator[None]:
  """Has something done at the end of a block, and by `leave` within it.

  Args:
    tidy: what to do; it may be cut short.
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
  """Whether this is the thread in which Python runs handlers of signals."""
  return threading.current_thread() is threading.main_thread()


def _tidy() -> None:
  for tidy in reversed(_at_end):
    with contextlib.suppress(Exception):
      tidy()
