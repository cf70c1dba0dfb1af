import os
import time
import zlib

import kept_programs
import pytest
import zstandard


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
  monkeypatch.setattr(kept_programs, '_FOLDER', tmp_path / 'kept')
  return monkeypatch


def _write(folder, name, data):
  with open(os.path.join(folder, name), 'wb') as file:
    file.write(data)


def _names(folder):
  return sorted(set(os.listdir(folder)) - {kept_programs._CHECKED})


def test_what_a_killed_process_left_is_removed():
  folder = kept_programs.folder()
  program = os.urandom(5000)
  for name, compress in (
    ('zlib', zlib.compress),
    ('zstd', zstandard.ZstdCompressor().compress),
  ):
    _write(folder, f'{name}-whole', compress(program))
    _write(folder, f'{name}-half', compress(program)[:2500])
  _write(folder, 'nothing', b'')
  assert kept_programs.folder() == folder
  assert _names(folder) == ['zlib-whole', 'zstd-whole']


def test_what_was_not_read_for_longest_goes(kept):
  folder = kept_programs.folder()
  data = zlib.compress(os.urandom(1000))
  kept.setattr(kept_programs, '_MOST_BYTES', 2 * len(data))
  for age, name in enumerate('abcd'):
    _write(folder, name, data)
    used = time.time() - 1000 * (age + 1)
    os.utime(os.path.join(folder, name), (used, used))
  kept_programs.folder()
  assert _names(folder) == ['a', 'b']


def test_without_a_place_programs_are_not_kept(kept, tmp_path):
  (tmp_path / 'file').write_text('')
  kept.setattr(kept_programs, '_FOLDER', tmp_path / 'file' / 'kept')
  removed = []
  kept.setattr(
    kept_programs.atexit, 'register', lambda *given, **_: removed.append(given)
  )
  folder = kept_programs.folder()
  assert os.path.isdir(folder)
  ((remove, name),) = removed
  remove(name)
  assert name == folder and not os.path.exists(folder)
