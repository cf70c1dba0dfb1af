"""Starts commands in children of `preloaded.py`, and follows them."""

import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TICK = 0.005
# Who reads them does so while it is imported.
_READ_BEFORE = 'JAX_', 'TF_'
# Of a command; most take a few seconds on an idle machine.
LONGEST = 600.0


class Outcome(NamedTuple):
  """How a command ended.

  Attributes:
    code: exit code, negative for a signal; None if it had to be killed since it
      did not end.
    out: what it printed.
    err: likewise, on stderr.
  """

  code: int | None
  out: str
  err: str

  @property
  def messages(self) -> list[str]:
    """What `perlhf` itself said in the end, one line each."""
    return [
      line for line in self.err.splitlines() if line.startswith('perlhf: ')
    ]


class Command:
  """A command that was started.

  Attributes:
    process: its id, and that of its process group.
  """

  def __init__(self, process, reading):
    self.process = process
    self._ended = threading.Event()
    self._code = None
    self._texts = [bytearray(), bytearray()]
    self._readers = [
      threading.Thread(target=self._read, args=each, daemon=True)
      for each in zip(reading, self._texts, strict=True)
    ]
    for reader in self._readers:
      reader.start()

  def _read(self, descriptor, text):
    with os.fdopen(descriptor, 'rb', buffering=0) as pipe:
      while data := pipe.read(1 << 16):
        text += data

  def end(self, code):
    """Notes that it has ended."""
    self._code = code
    self._ended.set()

  @property
  def is_over(self) -> bool:
    """Whether it has ended."""
    return self._ended.is_set()

  @property
  def err(self) -> str:
    """What it has printed on stderr so far."""
    return bytes(self._texts[1]).decode(errors='replace')

  def send(self, number) -> None:
    """Sends a signal to the command, unless it is over."""
    if not self.is_over:
      try:
        os.kill(self.process, number)
      except ProcessLookupError:
        pass

  def kill(self) -> None:
    """Kills it and all that it has started."""
    try:
      os.killpg(self.process, signal.SIGKILL)
    except ProcessLookupError:
      pass

  def limit_files(self, size) -> None:
    """Lets it write no file of more bytes than that."""
    try:
      resource.prlimit(self.process, resource.RLIMIT_FSIZE, (size, size))
    except ProcessLookupError:
      pass

  def wait_until(self, happens, seconds=LONGEST) -> bool:
    """Waits until something is true, the command is over, or it is too late.

    Time in which this process is stopped does not count.

    Args:
      happens: says whether it is true.
      seconds: to wait at most.

    Returns:
      Whether it is true.
    """
    for _ in range(round(seconds / _TICK)):
      if happens():
        return True
      if self.is_over:
        return False
      time.sleep(_TICK)
    return False

  def wait(self, seconds=LONGEST) -> Outcome:
    """Waits for its end; kills it if that does not come."""
    self.wait_until(lambda: False, seconds)
    is_late = not self.is_over
    if is_late:
      self.kill()
      self._ended.wait(10)
    for reader in self._readers:
      reader.join(10)  # A process that it has left behind may hold the pipe.
    self.kill()
    texts = (bytes(each).decode(errors='replace') for each in self._texts)
    return Outcome(None if is_late else self._code, *texts)


class Preloaded:
  """The process that starts commands; several threads may share it."""

  def __init__(self, programs):
    """Starts it.

    Args:
      programs: folder of compiled programs, which all commands share.
    """
    self._asking, theirs = socket.socketpair(
      socket.AF_UNIX, socket.SOCK_SEQPACKET
    )
    support = pathlib.Path(__file__).resolve().parent
    environment = {
      **os.environ,
      'PYTHONPATH': os.pathsep.join(map(str, (ROOT, support))),
      'JAX_PLATFORMS': 'cpu',
      'PERLHF_START_CACHE': 'off',
      # `perlhf plan` may have forbidden it in this process.
      'JAX_ENABLE_COMPILATION_CACHE': 'true',
      'JAX_COMPILATION_CACHE_DIR': str(programs),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
      # Hundreds of tiny programs are compiled, and run a few times.
      'XLA_FLAGS': os.environ.get(
        'XLA_FLAGS',
        '--xla_backend_optimization_level=0'
        ' --xla_llvm_disable_expensive_passes=true',
      ),
    }
    self._process = subprocess.Popen(
      [
        sys.executable,
        str(support / 'preloaded.py'),
        str(theirs.fileno()),
      ],
      env=environment,
      cwd=ROOT,
      pass_fds=[theirs.fileno()],
    )
    theirs.close()
    self._commands = {}
    self._starting = threading.Lock()
    self._started = []
    self._news = threading.Condition()
    said = json.loads(self._asking.recv(1 << 18) or b'{}')
    if 'ready' not in said:
      raise RuntimeError(said.get('failed', 'preloaded.py has ended'))
    threading.Thread(target=self._listen, daemon=True).start()

  def _listen(self):
    while data := self._asking.recv(1 << 18):
      said = json.loads(data)
      with self._news:
        if 'started' in said:
          self._started.append(said['started'])
        else:
          self._commands.setdefault(said['ended'], said['code'])
        self._news.notify_all()

  def start(
    self, arguments, folder, environment=None, jumps=(), program='perlhf'
  ) -> Command:
    """Starts a command.

    Args:
      arguments: its words, behind the program's name.
      folder: in which it is started.
      environment: variables to add.
      jumps: of its clock: seconds from its start, and seconds to add then.
      program: `perlhf`, or the path of a Python file.

    Raises:
      ValueError: a variable would have no effect.
    """
    late = [n for n in environment or {} if n.startswith(_READ_BEFORE)]
    if late:
      raise ValueError(f'{late} are read while libraries are imported')
    asked = {
      'program': str(program),
      'arguments': list(map(str, arguments)),
      'folder': str(folder),
      'environment': environment or {},
      'jumps': list(jumps),
    }
    pipes = os.pipe(), os.pipe()
    with self._starting:
      socket.send_fds(
        self._asking,
        [json.dumps(asked).encode()],
        [writing for _, writing in pipes],
      )
      for _, writing in pipes:
        os.close(writing)
      with self._news:
        self._news.wait_for(lambda: self._started)
        process = self._started.pop()
    command = Command(process, [reading for reading, _ in pipes])
    threading.Thread(target=self._follow, args=[command], daemon=True).start()
    return command

  def _follow(self, command):
    with self._news:
      self._news.wait_for(lambda: command.process in self._commands)
      code = self._commands.pop(command.process)
    command.end(code)

  def close(self) -> None:
    """Ends it; commands that it has started are left."""
    self._process.kill()
    self._process.wait()
    self._asking.close()
