"""SIGTERM is heard at once, and ends a process with a message."""

import signal
import subprocess
import sys

import pytest

_PROGRAM = """
import signal, threading, time
from perlhf_jax.core import sigterm

def tidy():
  print('tidied', flush=True)
  {tidying}

with sigterm.ends(75, 'stopped'), sigterm.tidied(tidy):
  {before}
  {work}
"""


_READY = "print('ready', flush=True)"


def _end(work, tidying='pass', before='pass'):
  if _READY not in work:
    work = f'{_READY}; {work}'
  program = _PROGRAM.format(work=work, tidying=tidying, before=before)
  with subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
  return process.returncode, out, err


@pytest.mark.parametrize(
  'work',
  [
    'time.sleep(60)',
    # Does not come back to Python.
    'import ctypes; [ctypes.CDLL(None).pause() for _ in range(99)]',
  ],
)
def test_it_ends_with_a_message(work):
  assert _end(work) == (75, 'tidied\n', 'perlhf: stopped\n')


def test_it_ends_so_after_an_inner_listener_too():
  before = 'with sigterm.Listener(lambda: None): pass'
  ended = _end('time.sleep(60)', before=before)
  assert ended == (75, 'tidied\n', 'perlhf: stopped\n')


def test_what_hangs_at_the_end_is_not_waited_for():
  code, out, err = _end('time.sleep(60)', 'time.sleep(60)')
  assert (code, out, err) == (75, 'tidied\n', 'perlhf: stopped\n')


def test_an_inner_listener_takes_over():
  work = f"""
  told = threading.Event()
  with sigterm.Listener(told.set):
    {_READY}
    told.wait(60)
  print('went on')
"""
  assert _end(work.strip('\n').lstrip()) == (0, 'went on\ntidied\n', '')
