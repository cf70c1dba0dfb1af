"""Disks that are full, read-only or gone."""

import pathlib
import shutil
import subprocess

import cases
import worlds

_FULL = 'disk is full', 'storage is full', 'No space left', 'make room'
_LARGE = 'exceeds the size limit', 'File too large'


def limit(case) -> str:
  """No file may have more bytes than some, from some moment on."""
  case.prepare()
  size = int(10 ** case.random.uniform(1, 5))
  case.what = f'no file larger than {size} bytes'
  command = case.start()
  moment = case.some_time() if case.number % 2 else 0
  command.wait_until(lambda: False, moment)
  command.limit_files(size)
  outcome = case.end(command, codes=(0, 2), names=_LARGE)
  if outcome.code:
    return case.recover(cases.CLEAR)
  case.compare(outcome)
  return cases.RECOVERED


def full(case) -> str:
  """A disk that is full at some moment."""
  with _Disk(case.folder) as disk:
    case.prepare()
    used = disk.used()
    size = used + int(case.random.uniform(0, 1.2) * used)
    case.what = f'{size - used} bytes are left on the disk'
    disk.mount_again(f'size={size}')
    outcome = case.run(codes=(0, 2), names=_FULL)
    if outcome.code:
      disk.mount_again('size=256m')
      return case.recover(cases.CLEAR)
    case.compare(outcome)
    return cases.RECOVERED


def read_only(case) -> str:
  """A disk that is read-only from the start."""
  with _Disk(case.folder) as disk:
    case.prepare(case.random.choice([0, worlds.HALF]))
    case.what = 'a read-only disk'
    disk.mount_again('ro')
    # What writes nothing is done.
    codes = (0,) if case.stage == 'inspect' else (2,)
    outcome = case.run(codes=codes, names=['read-only', 'Read-only'])
    if outcome.code == 0:
      case.compare(outcome)
      return cases.RECOVERED
    disk.mount_again('rw')
    return case.recover(cases.CLEAR)


def removed(case) -> str:
  """The folder goes away while the command is going on, and comes back."""
  case.prepare()
  case.what = 'its folder is renamed meanwhile'
  command = case.start()
  command.wait_until(lambda: False, case.some_time())
  away = case.folder / 'away'
  case.model_dir.rename(away)
  outcome = case.end(command, codes=(0, 2), names=[case.model_dir])
  if case.model_dir.exists():
    if outcome.code == 0:  # It was away before the command looked.
      case.compare(outcome)
      return cases.RECOVERED
    shutil.rmtree(case.model_dir)
  away.rename(case.model_dir)
  return case.recover(cases.CLEAR if outcome.code else cases.RECOVERED)


def can_mount() -> bool:
  """Whether this user may mount disks."""
  try:
    with _Disk(pathlib.Path('/tmp/perlhf_faults_mount')):
      return True
  except (OSError, subprocess.CalledProcessError):
    return False


class _Disk:
  """A small disk in memory, at a folder."""

  def __init__(self, folder):
    self._folder = folder

  def __enter__(self):
    self._folder.mkdir(exist_ok=True)
    self._mount('-t', 'tmpfs', '-o', 'size=256m', 'tmpfs')
    return self

  def _mount(self, *options):
    subprocess.run(
      ['mount', *options, self._folder], check=True, capture_output=True
    )

  def mount_again(self, options):
    self._mount('-o', f'remount,{options}')

  def used(self):
    """Bytes of whole pages, of which such a disk consists."""
    total, _, free = shutil.disk_usage(self._folder)
    return total - free

  def __exit__(self, *_):
    # Lazily: a process that was killed may still have it open.
    subprocess.run(['umount', '-l', self._folder], check=True)
