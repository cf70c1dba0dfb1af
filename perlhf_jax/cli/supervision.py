"""A parent that tells how a process of several ended.

jax ends a process by abort() when it cannot reach the others, or has lost one
of them, and nothing in that process can catch it. So the work is done in a
child, and its parent turns an abort into the exit code and the message that
the child has left for that case.
"""

from collections.abc import Callable
import contextlib
import json
import os
import signal
import sys
import threading

# In the child, the way to its parent.
_report: int | None = None


def run(work: Callable[[], int]) -> int:
  """Does work in a child; to be called before any thread is started.

  Args:
    work: returns an exit code, or does not return.

  Returns:
    The exit code: in the child that of `work`, in the parent that of the child
    or what it left by `if_aborted`.
  """
  global _report
  reading, writing = os.pipe()
  alive_reading, alive_writing = os.pipe()
  # The parent takes its signals with sigwait(): a handler could be set too
  # late, or run just before a blocking wait that nothing interrupts any more.
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
  # A terminal sends it to the child as well.
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
  """Leaves word for the parent; does nothing in a process without one.

  Args:
    code: exit code, should this process be aborted from now on.
    message: to print then; None if the work is over and all is said, so that
      however the process ends is of no account.
  """
  if _report is not None:
    line = json.dumps({'code': code, 'message': message}) + '\n'
    os.write(_report, line.encode())


def _last_report(reading: int) -> dict | None:
  """Reads what the child left last."""
  # A process that the child has started may still hold the other end.
  os.set_blocking(reading, False)
  with contextlib.suppress(BlockingIOError):
    lines = os.read(reading, 2**16).splitlines()
    return json.loads(lines[-1]) if lines else None
  return None


def _explain(number: int, report: dict | None) -> int:
  """Returns the exit code of a child that a signal killed, and says why."""
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
  """Ends this process when its parent is gone."""
  os.read(alive, 1)
  os.kill(os.getpid(), signal.SIGKILL)
