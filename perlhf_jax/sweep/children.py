"""Runs command lines as child processes, one after the other."""

from collections.abc import Sequence
import contextlib
import pathlib
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

from perlhf_jax.core import errors
from perlhf_jax.core import sigterm

# How a command is started.
PROGRAM = (sys.executable, '-m', 'perlhf_jax')
STOPPED = (
  'stopped by SIGTERM. The runs that have begun are kept: start the same '
  'command again to go on.'
)
_ERROR = 'perlhf: error: '
_LINES_SHOWN, _LETTERS_SHOWN = 5, 1000
_INTERRUPT_SECONDS = 10


class Ended(NamedTuple):
  """How a child ended.

  Attributes:
    code: its exit code, negative for a signal.
    error: the last lines that it printed, if it failed.
  """

  code: int
  error: str


class Children:
  """Starts children, and hands SIGTERM on to the one that runs.

  Attributes:
    is_told: whether SIGTERM has come.
  """

  def __init__(self):
    self.is_told = False
    self._child: subprocess.Popen | None = None
    self._starting = threading.Lock()

  def stop(self) -> None:
    """Ends the running child, or this process; called at each SIGTERM."""
    with self._starting:
      self.is_told = True
      child = self._child
    if child is None:
      sigterm.leave(errors.GOES_ON, STOPPED)
    child.send_signal(signal.SIGTERM)

  def run(self, words: Sequence[str], log: pathlib.Path) -> Ended:
    """Runs a command line to its end.

    Args:
      words: the command line, after `perlhf`.
      log: file to which it appends what it prints.

    Raises:
      PreemptedError: SIGTERM came before it was started.
    """
    with open(log, 'ab') as output:
      begin = output.tell()
      with self._starting:
        if self.is_told:
          raise errors.PreemptedError(STOPPED)
        self._child = subprocess.Popen(
          [*PROGRAM, *words],
          stdin=subprocess.DEVNULL,
          stdout=output,
          stderr=subprocess.STDOUT,
        )
      try:
        code = self._child.wait()
      except KeyboardInterrupt:
        _interrupt(self._child)
        raise
      finally:
        with self._starting:
          self._child = None
    return Ended(code, _last_error(log, begin, code) if code else '')


def _interrupt(child: subprocess.Popen) -> None:
  """Ends a child to which the terminal may have sent Ctrl-C too."""
  with contextlib.suppress(subprocess.TimeoutExpired):
    child.send_signal(signal.SIGINT)
    child.wait(_INTERRUPT_SECONDS)
  child.kill()
  child.wait()


def _last_error(log: pathlib.Path, begin: int, code: int) -> str:
  """Returns the message with which a child failed."""
  with open(log, 'rb') as file:
    file.seek(begin)
    text = file.read().decode(errors='replace')
  _, found, message = text.rpartition(_ERROR)
  if not found:
    lines = [line for line in text.splitlines() if line.strip()]
    message = '\n'.join(lines[-_LINES_SHOWN:])
  if code < 0:
    hint = '; out of memory?' if code == -signal.SIGKILL else ''
    name = signal.Signals(-code).name
    message = f'killed by {name}{hint}'
  return message.strip()[-_LETTERS_SHOWN:] or f'exit code {code}'
