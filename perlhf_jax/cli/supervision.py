"""A parent process that reports how a process of a multi-host run ended.

jax calls abort() when it cannot reach the other processes or has lost one, and
the process cannot catch that. So a child does the work, and its parent turns an
abort into the exit code and the message that the child left for that case.
"""

from collections.abc import Callable
import contextlib
import json
import os
import signal
import sys
import threading

# In the child, the pipe to its parent.
_report: int | None = None


def run(work: Callable[[], int]) -> int:
  """Does work in a child; call it before any thread is started.

  Args:
    work: returns an exit code, or does not return.

  Returns:
    In the child, the exit code of `work`; in the parent, the exit code of the
    child, or the one that the child left by `if_aborted`.
  """
  global _report
  reading, writing = os.pipe()
  alive_reading, alive_writing = os.pipe()
  # The parent waits for signals with sigwait(): a handler could be set too
  # late, or run just before a blocking wait that then nothing interrupts.
  awaited = {signal.SIGTERM, signal.SIGCHLD}
  signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  child = os.fork()
  if not child:
    os.close(reading)
    os.close(alive_writing)
    _report = writing
    signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
    threading.Thread(
      target=_die_with_parent, args=[alive_reading], daemon=True
    ).start()
    return work()
  os.close(writing)
  os.close(alive_reading)
  # A terminal sends SIGINT to the child too.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  ended = status = 0
  while not ended:
    if signal.sigwait(awaited) == signal.SIGTERM:
      os.kill(child, signal.SIGTERM)
    ended, status = os.waitpid(child, os.WNOHANG)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
  code = os.waitstatus_to_exitcode(status)
  if code >= 0:
    return code
  return _explain(-code, _last_report(reading))


def if_aborted(code: int, message: str | None = None) -> None:
  """Tells the parent how to report an abort; does nothing without a parent.

  Args:
    code: exit code to use if this process is aborted from now on.
    message: message to print then; None if the work is over, so that the parent
      ignores how the process ends and uses `code`.
  """
  if _report is not None:
    line = json.dumps({'code': code, 'message': message}) + '\n'
    os.write(_report, line.encode())


def _last_report(reading: int) -> dict | None:
  """Returns the last report of the child, or None."""
  # A process that the child started may still hold the other end open.
  os.set_blocking(reading, False)
  with contextlib.suppress(BlockingIOError):
    lines = os.read(reading, 2**16).splitlines()
    return json.loads(lines[-1]) if lines else None
  return None


def _explain(number: int, report: dict | None) -> int:
  """Returns the exit code for a child killed by a signal, and prints why."""
  if report and (number == signal.SIGABRT or report['message'] is None):
    if report['message']:
      print(f'perlhf: error: {report["message"]}', file=sys.stderr)
    return report['code']
  if number == signal.SIGTERM:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
  name = signal.Signals(number).name
  hint = '; out of memory?' if number == signal.SIGKILL else ''
  print(f'perlhf: error: killed by {name}{hint}', file=sys.stderr)
  return 128 + number


def _die_with_parent(alive: int) -> None:
  """Kills this process when its parent has ended."""
  os.read(alive, 1)
  os.kill(os.getpid(), signal.SIGKILL)
