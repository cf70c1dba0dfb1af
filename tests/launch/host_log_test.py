"""The copy, in a bucket, of what a command prints."""

import re
import signal
import subprocess
import sys

from etils import epath
import launch_world
import pytest
import ram_bucket

SCRIPT = launch_world.LAUNCH / 'host_log.py'
PROGRAM = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import host_log
host_log.PERIOD = 0.1
host_log.REST = 0.5
"""


def _start(folder, script):
  """Starts a shell script whose output goes into a folder."""
  return subprocess.Popen(
    [
      *(sys.executable, '-c'),
      f'{PROGRAM}sys.exit(host_log.run(*sys.argv[1:2], sys.argv[2:]))',
      *(str(folder), 'bash', '-c', script),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _text(folder):
  (path,) = folder.iterdir()
  assert re.fullmatch(r'\d{8}T\d{6}Z-.+\.log', path.name)
  return path.read_text()


@pytest.mark.parametrize('code', [0, 2, 75])
def test_output_and_exit_code_are_those_of_the_command(tmp_path, code):
  process = subprocess.run(
    [
      *(sys.executable, SCRIPT, tmp_path / 'rm' / 'logs', 'bash', '-c'),
      f'echo out; echo err >&2; printf "no end"; exit {code}',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == code
  assert (process.stdout, process.stderr) == ('out\nerr\nno end', '')
  assert _text(tmp_path / 'rm' / 'logs') == 'out\nerr\nno end'


def test_what_a_killed_command_printed_is_kept(tmp_path):
  process = _start(tmp_path / 'logs', 'echo step 7; kill -9 $$')
  process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGKILL
  assert _text(tmp_path / 'logs') == 'step 7\n'


def test_sigterm_reaches_the_command_which_has_the_last_word(tmp_path):
  process = _start(
    tmp_path / 'logs',
    'trap "echo saved; exit 75" TERM; echo running;'
    ' while :; do sleep 0.1; done',
  )
  assert process.stdout.readline() == 'running\n'
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 75
  assert _text(tmp_path / 'logs') == 'running\nsaved\n'


def test_the_copy_is_there_while_the_command_runs(tmp_path):
  process = _start(
    tmp_path / 'logs',
    f'echo step 7; until grep -qs "step 7" {tmp_path}/logs/*.log;'
    ' do sleep 0.1; done; echo seen',
  )
  assert process.communicate(timeout=60)[0] == 'step 7\nseen\n'
  assert _text(tmp_path / 'logs') == 'step 7\nseen\n'


def test_a_process_that_is_left_behind_does_not_hold_the_host(tmp_path):
  process = _start(tmp_path / 'logs', 'sleep 1000 & echo $!; exit 3')
  left = int(process.stdout.readline())
  try:
    assert process.wait(timeout=60) == 3
  finally:
    subprocess.run(['kill', str(left)], check=True)
  assert _text(tmp_path / 'logs') == f'{left}\n'


def test_a_bucket_that_cannot_be_written_is_one_line_and_no_end(tmp_path):
  (tmp_path / 'file').touch()
  process = _start(
    tmp_path / 'file' / 'logs', 'echo 1; sleep 0.5; echo 2; sleep 0.5; exit 4'
  )
  stdout, stderr = process.communicate(timeout=60)
  assert (process.returncode, stdout) == (4, '1\n2\n')
  assert stderr.startswith('host_log: cannot write ')
  assert stderr.count('\n') == 1


def test_the_command_holds_the_lock_too(tmp_path):
  subprocess.run(
    [
      *('bash', '-c', 'exec 9>"$0/lock"; "$@"', tmp_path),
      *(sys.executable, SCRIPT, tmp_path / 'logs'),
      *('bash', '-c', 'echo held >&9'),
    ],
    check=True,
  )
  assert (tmp_path / 'lock').read_text() == 'held\n'


def test_the_copy_goes_into_buckets_too(monkeypatch, tmp_path):
  ram_bucket.mount(monkeypatch, tmp_path)
  monkeypatch.syspath_prepend(SCRIPT.parent)
  import host_log

  local = tmp_path / 'output'
  copy = host_log.Copy(str(local), 'ram://bucket/host_log/logs/1.log')
  local.write_text('step 1\n')
  copy.update()
  target = epath.Path('ram://bucket/host_log/logs/1.log')
  assert target.read_text() == 'step 1\n'
