"""Ctrl-C and SIGTERM in the middle of a compilation, which may take minutes.

Python hears of a signal when the compiler returns, and libtpu answers SIGTERM
by printing its stack. A thread of ours hears at once instead.
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

  The exit code is 130 after Ctrl-C and 143 after SIGTERM. Whatever is to
  outlive the process must have been written before: nothing is cleaned up.
  Outside of the main thread, which alone may listen, it does nothing.

  Args:
    found: says, when it is asked, what is there already.
  """
  if not sigterm.is_main_thread():
    yield
    return
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  # The byte that a signal writes here is read by the thread, at once.
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
  """Waits for a signal; ends when the other end is closed."""
  with os.fdopen(reading, 'rb', buffering=0) as signals:
    while received := signals.read(1):
      if received[0] in _SIGNALS:
        # Not by print: the main thread may hold the lock of a stream.
        os.write(_STDERR, f'perlhf: interrupted; {found()}\n'.encode())
        os._exit(128 + received[0])
