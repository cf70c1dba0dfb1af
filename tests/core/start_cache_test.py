import os
import pathlib

import pytest

from perlhf_jax.core import start_cache


def test_a_folder_is_made_where_the_user_says(tmp_path, monkeypatch):
  monkeypatch.setenv(start_cache.VARIABLE, str(tmp_path / 'a' / 'b'))
  assert start_cache.folder('tokens') == tmp_path / 'a' / 'b' / 'tokens'
  assert (tmp_path / 'a' / 'b' / 'tokens').is_dir()


def test_by_default_it_is_where_caches_are(tmp_path, monkeypatch):
  monkeypatch.delenv(start_cache.VARIABLE)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'caches'))
  expected = tmp_path / 'caches' / 'perlhf_jax' / 'x'
  assert start_cache.folder('x') == expected
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  expected = tmp_path / 'home' / '.cache' / 'perlhf_jax' / 'x'
  assert start_cache.folder('x') == expected


def test_it_can_be_switched_off(monkeypatch, caplog):
  monkeypatch.setenv(start_cache.VARIABLE, 'off')
  assert start_cache.folder('tokens') is None
  assert not caplog.records


@pytest.mark.parametrize('name', ['{tmp_path}/file/folder', 'gs://bucket/x'])
def test_what_cannot_be_written_is_said_once(
  tmp_path, monkeypatch, caplog, name
):
  (tmp_path / 'file').touch()
  monkeypatch.setattr(start_cache, '_told', set())
  monkeypatch.chdir(tmp_path)
  name = name.format(tmp_path=tmp_path)
  monkeypatch.setenv(start_cache.VARIABLE, name)
  assert start_cache.folder('tokens') is None
  assert start_cache.folder('programs') is None
  (record,) = caplog.records
  assert record.levelname == 'WARNING'
  assert name in record.getMessage() and 'to off' in record.getMessage()
  assert os.listdir(tmp_path) == ['file']


def _entry(place: pathlib.Path, name: str, size: int, used: int):
  path = place / name
  if name.startswith('folder'):
    path.mkdir()
    (path / 'array').write_bytes(b'x' * size)
  else:
    path.write_bytes(b'x' * size)
  os.utime(path, (used, used))


@pytest.mark.parametrize(
  ('most', 'left'),
  [
    (60, ['a', 'b', 'folder']),
    (59, ['a', 'b']),
    (30, ['a', 'b']),
    (29, ['a']),
    (9, []),
  ],
)
def test_what_was_used_longest_ago_is_removed(tmp_path, most, left):
  _entry(tmp_path, 'a', 10, used=300)
  _entry(tmp_path, 'b', 20, used=200)
  _entry(tmp_path, 'folder', 30, used=100)
  start_cache.prune(tmp_path, most)
  assert sorted(os.listdir(tmp_path)) == left
