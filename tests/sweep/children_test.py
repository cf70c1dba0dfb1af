import os
import signal
import sys
import threading
import time

import pytest

from perlhf_jax.core import errors
from perlhf_jax.sweep import children as children_lib


@pytest.fixture(name='run')
def _run(monkeypatch, tmp_path):
  """Runs Python code as a child."""
  monkeypatch.setattr(children_lib, 'PROGRAM', (sys.executable, '-c'))

  def run(code, children=None):
    children = children or children_lib.Children()
    return children.run([code], tmp_path / 'log')

  run.log = tmp_path / 'log'
  return run


def test_what_it_prints_is_in_the_log(run):
  assert run('print(1)') == (0, '')
  run('import sys; print(2, file=sys.stderr)')
  assert run.log.read_text() == '1\n2\n'


def test_message_of_a_user_error(run):
  run('print("perlhf: error: an earlier start"); exit(2)')
  code = 'print("a line\\nperlhf: error: give --a\\n  and --b"); exit(2)'
  assert run(code) == (2, 'give --a\n  and --b')


def test_last_lines_of_a_fault(run):
  code, error = run('raise ValueError("a fault of ours")')
  assert code == 1
  assert error.endswith('ValueError: a fault of ours')
  assert len(error.splitlines()) <= 5


def test_no_message_at_all(run):
  assert run('exit(7)') == (7, 'exit code 7')


def test_killed(run):
  code, error = run('import os; os.kill(os.getpid(), 9)')
  assert code == -signal.SIGKILL
  assert 'SIGKILL' in error and 'memory' in error


def test_sigterm_reaches_the_child(run):
  children = children_lib.Children()
  code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print('ready', flush=True)
time.sleep(60)
"""

  def stop():
    while not (run.log.exists() and 'ready' in run.log.read_text()):
      time.sleep(0.01)
    children.stop()

  thread = threading.Thread(target=stop)
  thread.start()
  ended = run(code, children)
  thread.join()
  assert ended.code == errors.GOES_ON
  assert children.is_told
  with pytest.raises(errors.PreemptedError):
    run('print("not started")', children)
  assert 'not started' not in run.log.read_text()


def test_ctrl_c_ends_the_child(run, tmp_path, request):
  # Whoever starts tests in the background may have it ignored.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
  code = f"""
import os, time
open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))
os.kill(os.getppid(), 2)
time.sleep(60)
"""
  with pytest.raises(KeyboardInterrupt):
    run(code)
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_the_program_is_the_command_line(tmp_path):
  # As users have it: through perlhf_jax/__main__.py, in a new process.
  log = tmp_path / 'log'
  ended = children_lib.Children().run(['sweep', '--sweep_dir'], log)
  assert ended.code == 2
  assert '--sweep_dir' in ended.error or 'sweep_dir' in ended.error
