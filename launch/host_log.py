"""Runs a command, and copies its output to a bucket.

  python launch/host_log.py gs://my-bucket/rm/logs perlhf train_reward ...

The launchers use it on hosts whose disks are deleted. The copy is named
<time of the start>-<host>.log. It is updated every half minute and when the
command ends, for any reason. SIGTERM is passed on to the command, whose exit
code is returned. A failed copy prints a line on stderr and does not stop the
command.
"""

from collections.abc import Sequence
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

# Seconds between copies; to wait for output after the command has ended; and to
# wait for the last copy.
PERIOD = 30.0
REST = 5.0
LAST_COPY = 60.0


class Copy:
  """A file in a bucket that follows a local one."""

  def __init__(self, local: str, target: str):
    self._local = local
    self._target = target
    self._copied = 0
    self._is_failing = False

  def update(self) -> None:
    """Copies the file if it has grown."""
    size = os.path.getsize(self._local)
    if size == self._copied:
      return
    try:
      # Imports TensorFlow, which writes into buckets, only when needed.
      from etils import epath

      target = epath.Path(self._target)
      target.parent.mkdir(parents=True, exist_ok=True)
      epath.Path(self._local).copy(target, overwrite=True)
    except Exception as error:
      if not self._is_failing:
        print(
          f'host_log: cannot write {self._target}: {error}', file=sys.stderr
        )
      self._is_failing = True
    else:
      self._copied = size
      self._is_failing = False


def run(folder: str, command: Sequence[str]) -> int:
  """Runs a command.

  Args:
    folder: folder for the copy of the output.
    command: the command and its arguments.

  Returns:
    The command's exit code; 128 plus the signal's number if a signal ended it.
  """
  start = time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())
  name = f'{start}-{socket.gethostname()}.log'
  with tempfile.TemporaryDirectory(prefix='host_log_') as local_folder:
    local = os.path.join(local_folder, name)
    with open(local, 'wb', buffering=0) as file:
      process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # The command inherits run.lock, and holds it while it runs.
        close_fds=False,
      )
      for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, lambda number, _: process.send_signal(number))
      copy = Copy(local, f'{folder.rstrip("/")}/{name}')
      ended = threading.Event()
      reader = threading.Thread(
        target=_read, args=[process.stdout, file], daemon=True
      )
      copier = threading.Thread(target=_follow, args=[copy, ended], daemon=True)
      reader.start()
      copier.start()
      code = process.wait()
      # A process that the command left behind may keep the pipe open.
      reader.join(REST)
      ended.set()
      copier.join(LAST_COPY)
  return code if code >= 0 else 128 - code


def _read(stream, file) -> None:
  """Writes a stream to a file and to stdout."""
  shown = sys.stdout.buffer
  while chunk := stream.read1():
    file.write(chunk)
    # The reader of stdout may be gone; the command continues.
    with contextlib.suppress(OSError):
      shown.write(chunk)
      shown.flush()


def _follow(copy: Copy, ended: threading.Event) -> None:
  """Copies until the command has ended, then once more."""
  while not ended.wait(PERIOD):
    copy.update()
  copy.update()


if __name__ == '__main__':
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  status = run(sys.argv[1], sys.argv[2:])
  sys.stdout.flush()
  # Exits even if a copy hangs.
  os._exit(status)
