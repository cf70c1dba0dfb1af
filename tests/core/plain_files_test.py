import os
import socket

import pytest

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files


@pytest.fixture
def pipe(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  return tmp_path / 'pipe'


def test_a_file_is_read(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'content')
  (tmp_path / 'link').symlink_to(path)
  for each in path, tmp_path / 'link', str(path):
    assert plain_files.find_problem(each, 7) is None
    assert plain_files.read(each, errors.DataError, 7) == b'content'


def test_what_has_no_end_is_named_and_not_opened(tmp_path, pipe):
  server = socket.socket(socket.AF_UNIX)
  server.bind(str(tmp_path / 'socket'))
  (tmp_path / 'zero').symlink_to('/dev/zero')
  for name, wanted in {
    'pipe': 'it is a named pipe, not a file',
    'socket': 'it is a socket, not a file',
    'zero': 'it is a device, not a file',
    '.': 'it is a folder, not a file',
  }.items():
    path = tmp_path / name
    assert plain_files.find_problem(path) == wanted
    with pytest.raises(errors.DataError) as caught:
      plain_files.read(path, errors.DataError)
    assert f'{path} cannot be read: {wanted}. Put' in str(caught.value)
  server.close()


def test_a_pipe_that_the_user_names_is_read(pipe):
  assert plain_files.find_problem(pipe, pipes=True) is None
  writer = os.open(pipe, os.O_RDWR)
  os.write(writer, b'12345678')
  with pytest.raises(errors.DataError, match='more than 4 bytes'):
    plain_files.read(pipe, errors.DataError, 4, pipes=True)
  os.close(writer)
  assert plain_files.find_problem('/dev/zero', pipes=True) is not None


def test_a_file_that_is_too_large_is_not_read(tmp_path):
  path = tmp_path / 'sparse'
  with path.open('wb') as file:
    file.truncate(2**40)
  with pytest.raises(errors.CheckpointError) as caught:
    plain_files.read(path, errors.CheckpointError)
  for wanted in str(path), '1,099,511,627,776 bytes', 'at most 268,435,456':
    assert wanted in str(caught.value)


def test_a_size_that_is_not_told_is_counted():
  # Files of /proc have no size.
  with pytest.raises(errors.DataError, match='more than 3 bytes'):
    plain_files.read('/proc/self/status', errors.DataError, 3)


def test_no_file_is_no_problem_of_this_kind(tmp_path):
  assert plain_files.find_problem(tmp_path / 'nowhere') is None
  with pytest.raises(OSError):
    plain_files.read(tmp_path / 'nowhere', errors.DataError)
  assert 'null' in plain_files.find_problem('a\0b')
