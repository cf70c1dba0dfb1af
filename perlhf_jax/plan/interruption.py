"""Handles Ctrl-C and SIGTERM during a compilation, which may take minutes.

Python handles a signal only when the compiler returns, and libtpu answers
SIGTERM by printing its stack. A thread of this module reacts at once.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import threading

from perlhf_jax.core import sigterm

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2


@contextlib.contextmanager
def ends_quietly(found: Callable[[], str]) -> Iterator[None]:
  """Ends the process at a signal, with one line on stderr.

  The exit code is 130 after Ctrl-C and 143 after SIGTERM. There is no clean-up,
  so results must be on disk already. Outside the main thread, where Python
  allows no signal handlers, it does nothing.

  Args:
    found: returns a text about the results so far.
  """
  if not sigterm.is_main_thread():
    yield
    return
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  # A signal writes a byte here, which the thread reads at once.
  handlers = {each: signal.signal(each, lambda *_: None) for each in _SIGNALS}
  threading.Thread(
    target=_listen, args=[reading, found], name='signals', daemon=True
  ).start()
  try:
    yield
  finally:
    for each, handler in handlers.items():
      signal.signal(each, handler or signal.SIG_DFL)
    signal.set_wakeup_fd(wakeup)
    os.close(writing)


def _listen(reading: int, found: Callable[[], str]) -> None:
  """Waits for a signal; ends when the other end of the pipe is closed."""
  with os.fdopen(reading, 'rb', buffering=0) as signals:
    while received := signals.read(1):
      if received[0] in _SIGNALS:
        # Not with print: the main thread may hold the stream's lock.
        os.write(_STDERR, f'perlhf: interrupted; {found()}\n'.encode())
        os._exit(128 + received[0])
