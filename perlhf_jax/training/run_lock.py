"""Lock files, which keep two runs from writing to one MODEL_DIR.

A bucket has neither locks nor exclusive creation of files. But a run that first
writes its own file and then sees no other file is alone: of two such runs, the
later one sees the earlier one's file. So each run writes its own file,
`lock-HOST-PROCESS-RANDOM.json`, and renews it every ten seconds. A killed run
leaves its file behind. Another run ignores that file if its process is gone on
this host, or if it is not renewed while the other run watches it. Clocks are
not compared, because they differ between hosts and jump.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import secrets
import socket
import threading
import time

from absl import logging
from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.core import sigterm
from perlhf_jax.core import strict_json

_PREFIX = 'lock-'
RENEWAL_SECONDS = 10.0
# How long a file must stay unchanged before its run counts as gone.
WATCH_SECONDS = 35.0
_POLL_SECONDS = 0.5
_PROC = pathlib.Path('/proc')

# Names of the lock files of this process's active runs.
_of_this_process: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Claim:
  """Content of a run's lock file.

  Attributes:
    host: host name of the run.
    process: process id on that host.
    started: start time, in UTC.
    machine: identifier of the machine and container, since several may have one
      host name; empty if unknown.
    born: start of the process in ticks of its machine, since process ids are
      reused; empty if unknown.
    renewals: number of renewals of the file.
    is_held: whether the run found itself alone, and so holds the lock.
  """

  host: str
  process: int
  started: str
  machine: str = ''
  born: str = ''
  renewals: int = 0
  is_held: bool = False

  def is_of_this_machine(self) -> bool:
    """Whether the run's process is on this machine."""
    here = socket.gethostname(), _machine()
    return (self.host, self.machine) == here

  def __str__(self):
    return (
      f'process {self.process} on the host {self.host}, started '
      f'{self.started} UTC'
    )


class RunLock:
  """The lock of one run; see the module."""

  def __init__(self, model_dir: epath.Path):
    """Makes a lock that is not held yet.

    Args:
      model_dir: an existing folder.
    """
    self._model_dir = model_dir
    self._claim = _own_claim()
    host = re.sub(r'[^\w.-]', '_', self._claim.host)
    self._name = (
      f'{_PREFIX}{host}-{self._claim.process}-{secrets.token_hex(4)}.json'
    )
    self._path = model_dir / self._name
    self._writing = threading.Lock()
    self._is_over = threading.Event()

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Holds the lock during the block; releases it however the block ends.

    Raises:
      CheckpointError: another run holds it.
    """
    with sigterm.tidied(self._release):
      _of_this_process.add(self._name)
      self._write()
      threading.Thread(target=self._renew, name='lock', daemon=True).start()
      self._be_alone()
      self._write(is_held=True)
      yield

  def check(self) -> None:
    """Makes sure that MODEL_DIR still exists and belongs to this run.

    Raises:
      OutsideError: MODEL_DIR or the lock file is gone, or another run took
        MODEL_DIR over.
    """
    if self._path.exists():
      return
    folder = self._model_dir
    others = _read_others(folder, self._name) if folder.exists() else {}
    if others:
      by = _parse(next(iter(others.values())))
      raise errors.OutsideError(
        f'MODEL_DIR {folder} was taken over by another run'
        f'{f", {by}" if by else ""}: this one did not renew {self._name} in '
        'time. It has stopped, so that their files are not mixed.'
      )
    if folder.exists() and any(folder.iterdir()):
      raise errors.OutsideError(
        f'{self._path}, by which this run is known, was deleted while the run '
        'was going on, and perhaps more of MODEL_DIR. The run has stopped. '
        'Start the same command again to go on with what is left.'
      )
    raise errors.OutsideError(
      f'MODEL_DIR {folder} is gone: it was removed or renamed, or its disk was '
      'taken away, while the run was going on. Put it back and start the same '
      'command again, which goes on from its newest checkpoint; without it the '
      'command begins anew.'
    )

  def _be_alone(self) -> None:
    """Waits a limited time until no other run is active.

    Raises:
      CheckpointError: another run stays active.
    """
    began = time.monotonic()
    watched: dict[str, _Watched] = {}
    waits = False
    while others := _read_others(self._model_dir, self._name):
      for name, content in others.items():
        other = watched.setdefault(name, _Watched(name, content))
        other.look(content)
        if other.is_gone():
          logging.info(
            '%s is of a run that ended without removing it.',
            self._model_dir / name,
          )
          (self._model_dir / name).unlink(missing_ok=True)
        elif other.is_at_work() and time.monotonic() - began >= self._patience(
          other
        ):
          raise errors.CheckpointError(_refusal(self._model_dir, other))
        elif not waits:
          waits = True
          logging.info(
            'Another run may be at work in MODEL_DIR %s%s; watching %s for %d '
            'seconds.',
            self._model_dir,
            f' ({other.claim})' if other.claim else '',
            name,
            WATCH_SECONDS,
          )
      time.sleep(_POLL_SECONDS)

  def _patience(self, other: '_Watched') -> float:
    """Returns how many seconds to wait for a run that seems active."""
    if other.claim is None:
      return 2 * WATCH_SECONDS
    mine = self._claim.started, self._name
    if not other.claim.is_held and mine < (other.claim.started, other.name):
      # If two runs start at the same time, the later one gives up first.
      return 2 * WATCH_SECONDS
    # A run that is being stopped on another machine gets time to save.
    return 0 if other.claim.is_of_this_machine() else WATCH_SECONDS

  def _renew(self) -> None:
    """Renews the file until the lock is released or the file is removed."""
    has_warned = False
    while not self._is_over.wait(RENEWAL_SECONDS):
      try:
        if not self._path.exists():
          return
        self._write(renewals=self._claim.renewals + 1)
      except Exception as error:
        if not has_warned:
          logging.warning('%s cannot be renewed: %s', self._path, error)
        has_warned = True

  def _write(self, **changes: int) -> None:
    """Replaces the file, so that readers see the old or the new content."""
    with self._writing:
      if self._is_over.is_set():
        return
      self._claim = dataclasses.replace(self._claim, **changes)
      text = strict_json.dumps(dataclasses.asdict(self._claim)) + '\n'
      temporary = self._path.with_name(f'.{self._name}.tmp')
      try:
        temporary.write_text(text)
        temporary.replace(self._path)
      except Exception:  # Buckets raise their own exception classes.
        temporary.unlink(missing_ok=True)
        raise

  def _release(self) -> None:
    """Removes the file."""
    self._is_over.set()
    _of_this_process.discard(self._name)
    # The lock keeps `_write` from creating the file again.
    with self._writing:
      try:
        self._path.unlink(missing_ok=True)
      except Exception as error:  # The run has ended; a warning is enough.
        logging.warning('%s cannot be removed: %s', self._path, error)


def check_free(model_dir: epath.Path) -> None:
  """Makes sure that no run of this machine is writing to a folder.

  Runs of other machines can only be told from dead ones by watching them, which
  takes time, so they are not looked at.

  Args:
    model_dir: an existing folder.

  Raises:
    CheckpointError: a run of this machine is writing to the folder.
  """
  for name, content in _read_others(model_dir, '').items():
    other = _Watched(name, content)
    if other.is_at_work():
      raise errors.CheckpointError(_refusal(model_dir, other))


class _Watched:
  """The lock file of another run, read repeatedly.

  Attributes:
    name: name of the file.
    claim: content of the file; None if it cannot be parsed.
  """

  def __init__(self, name: str, content: bytes):
    self.name = name
    self.claim = _parse(content)
    self._content = content
    self._since = time.monotonic()
    self._is_renewed = False

  def look(self, content: bytes) -> None:
    """Notes the current content of the file."""
    if content == self._content:
      return
    self.claim = _parse(content)
    self._content = content
    self._since = time.monotonic()
    self._is_renewed = True

  def is_gone(self) -> bool:
    """Whether the run is known, or after watching presumed, to have ended."""
    if self._is_of_this_machine():
      return not self._is_running_here()
    return time.monotonic() - self._since > WATCH_SECONDS

  def is_at_work(self) -> bool:
    """Whether the run is known to be active."""
    if self._is_of_this_machine():
      return self._is_running_here()
    return self._is_renewed and not self.is_gone()

  def _is_of_this_machine(self) -> bool:
    return self.claim is not None and self.claim.is_of_this_machine()

  def _is_running_here(self) -> bool:
    if self.claim.process == os.getpid() and self.claim.born == _born('self'):
      return self.name in _of_this_process
    return _is_running(self.claim.process, self.claim.born)


def _refusal(model_dir: epath.Path, other: _Watched) -> str:
  who = f'another run: {other.claim}' if other.claim else 'another run'
  return (
    f'MODEL_DIR {model_dir} is being written by {who}. Wait until it has '
    'ended, or stop it (SIGTERM has it save), and start this command again, '
    'which goes on from its newest checkpoint; or give another MODEL_DIR. If '
    f'that run is surely gone, delete {model_dir / other.name}.'
  )


def _read_others(folder: epath.Path, own: str) -> dict[str, bytes]:
  """Reads the lock files of other runs, by file name."""
  found = {}
  for path in folder.iterdir():
    if path.name.startswith(_PREFIX) and path.name != own:
      with contextlib.suppress(FileNotFoundError):  # It has just ended.
        found[path.name] = path.read_bytes()
  return found


def _parse(content: bytes) -> Claim | None:
  """Parses a claim; None if it is damaged or of another version."""
  try:
    fields = strict_json.loads(content.decode())
    claim = Claim(**fields)
  except (ValueError, TypeError, RecursionError):
    return None
  are_text = all(
    isinstance(each, str)
    for each in (claim.host, claim.started, claim.machine, claim.born)
  )
  is_whole = are_text and type(claim.process) is int
  return claim if is_whole and type(claim.is_held) is bool else None


def _own_claim() -> Claim:
  now = datetime.datetime.now(datetime.UTC)
  return Claim(
    host=socket.gethostname(),
    process=os.getpid(),
    started=f'{now:%Y-%m-%d %H:%M:%S}',
    machine=_machine(),
    born=_born('self'),
  )


def _machine() -> str:
  """Returns an identifier of this machine and container; empty if unknown."""
  try:
    boot = (_PROC / 'sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink(_PROC / "self/ns/pid")}'
  except OSError:
    return ''


def _born(process: int | str) -> str:
  """Returns when a process started, in clock ticks; empty if unknown."""
  try:
    return _stat(process)[19]
  except OSError:
    return ''


def _is_running(process: int, born: str) -> bool:
  """Whether a process of this machine runs and is the one born at `born`."""
  try:
    state, *fields = _stat(process)
  except OSError:
    pass
  else:
    return state not in ('Z', 'X') and fields[18] == born
  try:
    os.kill(process, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:
    pass  # It is another user's.
  return True


def _stat(process: int | str) -> list[str]:
  """Returns the fields of Linux's /proc/PID/stat, from the state on."""
  text = (_PROC / str(process) / 'stat').read_text()
  return text.rpartition(')')[2].split()
