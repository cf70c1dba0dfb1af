"""The report of a check, line by line."""

from collections.abc import Callable, Iterator
import contextlib
import threading
from typing import Any

from etils import epath

from perlhf_jax.core import errors

# Without a network, clients of buckets retry for minutes.
_REMOTE_SECONDS = 20


class Report:
  """Prints results of checks, and collects mistakes."""

  def __init__(self, say: Callable[[str], None] = print):
    self._say = say
    self._problems: list[str] = []

  def ok(self, what: str, text: str) -> None:
    """Prints a check that passed."""
    self._say(f'ok       {what}: {text}')

  def skipped(self, what: str, reason: str) -> None:
    """Prints a check that is not possible here."""
    self._say(f'skipped  {what}: {reason}')

  def writes(self, path: str) -> None:
    """Prints a path that the command writes; launchers read this line."""
    self._say(f'writes: {path}')

  def reads(self, path: str) -> None:
    """Prints a path that the command reads; launchers read this line."""
    self._say(f'reads: {path}')

  @contextlib.contextmanager
  def part(self) -> Iterator[None]:
    """Collects an error that ends the block, so that later checks still run."""
    try:
      yield
    except errors.UserError as error:
      # Two splits of a task may have the same mistake.
      if str(error) not in self._problems:
        self._problems.append(str(error))

  def finish(self) -> None:
    """Ends the check.

    Raises:
      ConfigError: there are mistakes; the message lists all.
    """
    if len(self._problems) == 1:
      raise errors.ConfigError(self._problems[0])
    if self._problems:
      listed = ''.join(f'\n  - {problem}' for problem in self._problems)
      raise errors.ConfigError(f'{len(self._problems)} mistakes:{listed}')
    self._say('Nothing was started.')


def unreachable(path: str | None) -> str | None:
  """Returns why a path cannot be reached from here; None if it can.

  Args:
    path: local, or an address such as `gs://bucket/folder`, or None.
  """
  if path is None or '://' not in path:
    return None
  answer: list[Any] = []

  def ask():
    try:
      answer.append(epath.Path(path).exists())
    # Every file system has its own exception classes.
    except Exception as error:
      answer.append(f'{type(error).__name__}: {error}')

  # A daemon thread: a client that still waits does not keep the process alive.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(_REMOTE_SECONDS)
  if not answer:
    return f'{path} did not answer within {_REMOTE_SECONDS} seconds'
  if isinstance(answer[0], str):
    return f'{path} cannot be read from here ({answer[0]})'
  return None
