import signal
import subprocess
import sys

import pytest

_WORK = """
import os, signal, sys, time
from perlhf_jax.cli import supervision

def work():
  supervision.if_aborted(2, 'nobody came')
  {0}

sys.exit(supervision.run(work))
"""


def _start(work):
  return subprocess.Popen(
    [sys.executable, '-c', _WORK.format(work)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize(
  ('work', 'code', 'err'),
  [
    ('return 0', 0, ''),
    ('return 7', 7, ''),
    ('os._exit(75)', 75, ''),
    ('os.abort()', 2, 'perlhf: error: nobody came\n'),
    ('supervision.if_aborted(3, "x"); os.abort()', 3, 'perlhf: error: x\n'),
    # Whatever happens to a process that is done.
    ('supervision.if_aborted(0); os.abort()', 0, ''),
    ('supervision.if_aborted(75); os.kill(os.getpid(), 15)', 75, ''),
    (
      'os.kill(os.getpid(), signal.SIGSEGV)',
      128 + signal.SIGSEGV,
      'perlhf: error: killed by SIGSEGV\n',
    ),
    (
      'os.kill(os.getpid(), signal.SIGKILL)',
      128 + signal.SIGKILL,
      'perlhf: error: killed by SIGKILL; out of memory?\n',
    ),
  ],
)
def test_how_a_process_ends(work, code, err):
  process = _start(work)
  assert process.communicate(timeout=30)[1] == err
  assert process.returncode == code


_TALKING = """signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
  print('ready', flush=True)
  # Many sleeps: a signal just before a sleep begins does not end it.
  for _ in range(600):
    time.sleep(.1)"""


def test_sigterm_reaches_the_work():
  process = _start(_TALKING)
  assert process.stdout.readline() == 'ready\n'
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 75


def test_sigterm_ends_work_that_does_not_take_it():
  process = _start('print(1, flush=True); time.sleep(60)')
  process.stdout.readline()
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == -signal.SIGTERM


def test_the_work_ends_with_its_parent():
  process = _start(_TALKING)
  assert process.stdout.readline() == 'ready\n'
  process.kill()
  # Its output ends when the child is gone, too.
  process.communicate(timeout=30)
