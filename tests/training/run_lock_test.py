"""Of all runs that begin in a MODEL_DIR, one is at work there."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

from etils import epath
import pytest
import ram_bucket

from perlhf_jax.core import errors
from perlhf_jax.training import run_lock

_RENEWAL, _WATCH = 0.05, 0.5


@pytest.fixture(autouse=True)
def quick(monkeypatch, caplog):
  caplog.set_level(logging.INFO)
  monkeypatch.setattr(run_lock, 'RENEWAL_SECONDS', _RENEWAL)
  monkeypatch.setattr(run_lock, 'WATCH_SECONDS', _WATCH)
  monkeypatch.setattr(run_lock, '_POLL_SECONDS', 0.02)


@pytest.fixture(params=['disk', 'bucket'])
def folder(request, monkeypatch, tmp_path):
  """A MODEL_DIR that is there."""
  if request.param == 'disk':
    path = epath.Path(tmp_path) / 'run'
  else:
    ram_bucket.mount(monkeypatch, tmp_path)
    path = epath.Path(f'ram://locks/{tmp_path.name}')
  path.mkdir(parents=True)
  return path


@pytest.fixture
def disk(tmp_path):
  return epath.Path(tmp_path)


def _files(folder):
  return [path for path in folder.iterdir() if 'lock' in path.name]


def _claim(**fields):
  own = run_lock._own_claim()
  return dataclasses.replace(own, is_held=True, **fields)


def _put(folder, claim, name='lock-other-1-abc.json'):
  """Puts down the file of another run."""
  text = json.dumps(dataclasses.asdict(claim))
  (folder / name).write_text(text)
  return folder / name


def _elsewhere(**fields):
  fields = {'host': 'tpu-7', 'process': 4242, **fields}
  return _claim(machine='another', **fields)


def test_a_file_says_who_is_at_work_and_goes_at_the_end(folder):
  with run_lock.RunLock(folder).held():
    (file,) = _files(folder)
    fields = json.loads(file.read_text())
    assert fields['host'] == socket.gethostname()
    assert fields['process'] == os.getpid()
    assert fields['is_held'] is True
    first = fields['renewals']
    time.sleep(6 * _RENEWAL)
    assert json.loads(file.read_text())['renewals'] > first
  assert not _files(folder)


def test_it_goes_after_an_error_too(disk):
  with pytest.raises(ZeroDivisionError), run_lock.RunLock(disk).held():
    raise ZeroDivisionError
  assert not _files(disk)
  assert not run_lock._of_this_process


def test_a_second_run_is_refused_at_once(folder):
  with run_lock.RunLock(folder).held():
    (file,) = _files(folder)
    with pytest.raises(errors.CheckpointError) as error:
      with run_lock.RunLock(folder).held():
        raise AssertionError('two runs are at work')
    message = str(error.value)
    assert str(folder) in message and file.name in message
    assert f'process {os.getpid()} on the host {socket.gethostname()}' in (
      message
    )
    assert 'UTC' in message and 'SIGTERM' in message
    with pytest.raises(errors.CheckpointError, match='another run: process'):
      run_lock.check_free(folder)
    assert _files(folder) == [file]
  run_lock.check_free(folder)
  with run_lock.RunLock(folder).held():
    pass


def _dead_process():
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  return process.pid


@pytest.mark.parametrize('kind', ['gone', 'number used again', 'own number'])
def test_a_run_that_was_killed_here_holds_nobody_up(disk, kind, monkeypatch):
  monkeypatch.setattr(run_lock, 'WATCH_SECONDS', 60.0)
  claim = {
    'gone': lambda: _claim(process=_dead_process()),
    'number used again': lambda: _claim(process=os.getppid(), born='1'),
    # As in a container, which was started again.
    'own number': lambda: _claim(),
  }[kind]()
  file = _put(disk, claim)
  began = time.monotonic()
  with run_lock.RunLock(disk).held():
    assert time.monotonic() - began < 5
    assert not file.exists()


def test_a_process_that_nobody_has_waited_for_is_gone(disk):
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)
  _put(disk, _claim(process=process.pid, born=run_lock._born(process.pid)))
  with pytest.raises(errors.CheckpointError, match=f'process {process.pid} '):
    with run_lock.RunLock(disk).held():
      pass
  process.kill()
  deadline = time.monotonic() + 20
  while run_lock._stat(process.pid)[0] != 'Z':
    assert time.monotonic() < deadline
  with run_lock.RunLock(disk).held():
    pass
  process.wait()


def test_where_nothing_tells_when_a_process_began(disk, monkeypatch):
  # As on macOS.
  monkeypatch.setattr(run_lock, '_PROC', disk / 'none')
  _put(disk, _claim(process=_dead_process()))
  with run_lock.RunLock(disk).held():
    pass
  _put(disk, _claim(process=os.getppid()))
  with pytest.raises(errors.CheckpointError):
    with run_lock.RunLock(disk).held():
      pass


@contextlib.contextmanager
def _renewing(folder, seconds):
  """Another host that is at work for some seconds."""

  def work():
    end, renewals = time.monotonic() + seconds, 0
    while time.monotonic() < end and not over.is_set():
      renewals += 1
      temporary = folder / 'other.tmp'
      temporary.write_text(
        json.dumps(dataclasses.asdict(_elsewhere(renewals=renewals)))
      )
      temporary.replace(folder / 'lock-tpu-7-4242-abc.json')
      time.sleep(_RENEWAL)
    (folder / 'lock-tpu-7-4242-abc.json').unlink()

  over = threading.Event()
  thread = threading.Thread(target=work)
  thread.start()
  while not (folder / 'lock-tpu-7-4242-abc.json').exists():
    time.sleep(0.01)
  yield
  over.set()
  thread.join()


def test_a_run_on_another_host_is_watched_and_refuses(folder, caplog):
  with _renewing(folder, 60):
    with pytest.raises(errors.CheckpointError) as error:
      with run_lock.RunLock(folder).held():
        pass
  assert 'process 4242 on the host tpu-7' in str(error.value)
  assert 'Another run may be at work' in caplog.text
  assert not _files(folder)


def test_a_run_that_is_about_to_go_is_waited_for(disk):
  with _renewing(disk, _WATCH / 2):
    with run_lock.RunLock(disk).held():
      assert len(_files(disk)) == 1


def test_a_file_that_nobody_renews_does_not_count(folder):
  # However its host's clock stands.
  file = _put(folder, _elsewhere(started='2999-01-01 00:00:00'))
  began = time.monotonic()
  with run_lock.RunLock(folder).held():
    assert time.monotonic() - began >= _WATCH
    assert not file.exists()


@pytest.mark.parametrize(
  'content',
  [b'', b'\0' * 200, b'{"host": "a"', b'[]', b'{"host": 1, "process": 2}'],
)
def test_a_damaged_file_does_not_count_either(disk, content):
  (disk / 'lock-x-1-a.json').write_bytes(content)
  with run_lock.RunLock(disk).held():
    assert len(_files(disk)) == 1


def test_of_several_that_begin_together_one_goes_on(disk):
  # Real ones would be processes; these look at each other's files alike.
  at_work, refused, together = [], [], threading.Barrier(4)

  def work():
    together.wait()
    try:
      with run_lock.RunLock(disk).held():
        at_work.append(1)
        time.sleep(1.0)
    except errors.CheckpointError:
      refused.append(1)

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (len(at_work), len(refused)) == (1, 3)
  assert not _files(disk)


def test_what_others_do_to_the_folder_is_noticed(disk):
  folder = disk / 'run'
  folder.mkdir()
  lock = run_lock.RunLock(folder)
  with lock.held():
    lock.check()
    (file,) = _files(folder)
    other = _put(folder, _elsewhere())
    lock.check()  # Its own file is there: the other one does not count.
    file.unlink()
    with pytest.raises(errors.OutsideError, match=r'over by another .*tpu-7'):
      lock.check()
    other.unlink()
    (folder / 'metrics.jsonl').touch()
    with pytest.raises(errors.OutsideError, match='was deleted while'):
      lock.check()
    shutil.rmtree(folder)
    with pytest.raises(errors.OutsideError, match='is gone: it was removed'):
      lock.check()
    time.sleep(3 * _RENEWAL)
    assert not folder.exists()  # Nothing is put back.


def test_a_disk_that_is_full_meanwhile_is_a_warning(disk, monkeypatch, caplog):
  def full(*_):
    raise OSError(28, 'No space left on device')

  with run_lock.RunLock(disk).held():
    with monkeypatch.context() as patched:
      patched.setattr(type(disk), 'write_text', full)
      time.sleep(5 * _RENEWAL)
  (warning,) = (r for r in caplog.records if r.levelname == 'WARNING')
  assert 'cannot be renewed: [Errno 28]' in warning.getMessage()
  assert not list(disk.iterdir())
