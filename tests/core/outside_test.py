"""Errors of the outside world, as every library reports them, are read."""

import errno
import os
import pathlib
import socket

import pytest

from perlhf_jax.core import errors
from perlhf_jax.core import outside
from perlhf_jax.core import user_code

_TENSORSTORE = (
  'RESOURCE_EXHAUSTED: Error writing "/runs/rm/checkpoints/3/state/d/0": '
  'Failed to write to file [OS error 28: ENOSPC No space left on device] '
  "[source locations='tensorstore/internal/os/file_util.cc:1']"
)
_OCDBT = (
  'OUT_OF_RANGE: Error writing "opt_state.1.0.count/0" in OCDBT database at '
  'local file "/runs/rm/ocdbt.process_0/": Failed writing: "/runs/rm/d/a": '
  "Failed to write 5460 bytes to file 15: File too large [os_error_code='27']"
)
_BUCKET = (
  'PERMISSION_DENIED: Error reading "gs://bucket/run/checkpoints/3": HTTP '
  'response code: 403'
)


def _raised(function, *arguments):
  try:
    function(*arguments)
  except Exception as error:
    return error
  raise AssertionError('nothing was raised')


def _foreign(module, name, text):
  """An error of a library that core does not import."""
  return type(name, (Exception,), {'__module__': module})(text)


def _of_number(number):
  return OSError(number, os.strerror(number), '/runs/rm/metrics.jsonl')


@pytest.mark.parametrize(
  ('number', 'what', 'goes_on'),
  [
    (errno.ENOSPC, 'The disk is full', False),
    (errno.EDQUOT, 'The quota', False),
    (errno.EROFS, 'The disk is read-only', False),
    (errno.EACCES, 'Permission is denied', False),
    (errno.EMFILE, 'Too many files are open', False),
    (errno.EIO, 'input/output error', True),
    (errno.ESTALE, 'did not answer', True),
    (errno.ETIMEDOUT, 'did not answer', True),
    (errno.ENOTCONN, 'did not answer', True),
  ],
)
def test_of_the_system(number, what, goes_on):
  error = outside.as_user_error(_of_number(number), 'Step 3 is kept.')
  message = str(error)
  assert what in message
  assert '/runs/rm/metrics.jsonl' in message and os.strerror(number) in message
  assert message.endswith('Step 3 is kept.')
  assert error.exit_code == (75 if goes_on else 2)
  assert isinstance(error, errors.UserError)


def test_a_disk_that_is_really_full():
  def write():
    with open('/dev/full', 'w') as file:
      file.write('x')

  failure = outside.failure_of(_raised(write))
  assert failure.what == 'the disk is full'


def test_a_folder_that_is_really_not_there(tmp_path):
  gone = tmp_path / 'gone' / 'file'
  failure = outside.failure_of(_raised(gone.write_text, ''))
  assert failure.path == str(gone)
  assert 'does not exist' in failure.what


@pytest.mark.parametrize(
  ('error', 'what', 'path', 'passes'),
  [
    (
      ValueError(_TENSORSTORE),
      'the disk is full',
      '/runs/rm/checkpoints/3/state/d/0',
      False,
    ),
    (ValueError(_OCDBT), 'size limit', '/runs/rm/ocdbt.process_0/', False),
    (
      ValueError(_BUCKET),
      'permission is denied',
      'gs://bucket/run/checkpoints/3',
      False,
    ),
    (
      _foreign('tensorflow.python', 'ResourceExhaustedError', 'no room'),
      'the storage is full',
      None,
      False,
    ),
    (
      _foreign('tensorflow.python', 'UnavailableError', 'try later'),
      'the network',
      None,
      True,
    ),
    (
      _foreign('google.api_core', 'DeadlineExceeded', 'too late'),
      'the network',
      None,
      True,
    ),
    (TimeoutError('1 of 2 done after 1200 seconds'), 'the clock', None, True),
    (ConnectionResetError(), 'the network', None, True),
    (socket.gaierror(-2, 'Name or service not known'), 'network', None, True),
    (FileNotFoundError('gs://a/b'), 'does not exist', None, False),
  ],
)
def test_of_libraries(error, what, path, passes):
  failure = outside.failure_of(error)
  assert what in failure.what
  assert failure.path == path
  assert (failure.remedy is None) == passes
  assert '\n' not in str(failure)


@pytest.mark.parametrize(
  'error',
  [
    ValueError('shapes do not match'),
    ValueError('Gloo all-reduce failed: UNAVAILABLE: Error reading'),
    KeyError('x'),
    OSError('libcuda.so: cannot open shared object file'),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes'),
  ],
)
def test_of_another_kind(error):
  assert outside.failure_of(error) is None
  assert outside.as_user_error(error) is None


def _within(filename, number=errno.ENOSPC):
  """An error that a file raises while it handles one of the system."""
  source = 'try:\n  raise OSError(n, "")\nexcept OSError:\n  1 / 0\n'
  code = compile(source, filename, 'exec')
  return _raised(exec, code, {'n': number})


def test_what_a_library_makes_of_an_error_of_the_system():
  failure = outside.failure_of(_within('/lib/orbax/save.py'))
  assert failure.what == 'the disk is full'


def test_a_fault_of_ours_is_none_of_the_world():
  ours = pathlib.Path(user_code.__file__).with_name('some_file.py')
  assert outside.failure_of(_within(str(ours))) is None


def test_a_cause_is_followed():
  error = RuntimeError('a save failed')
  error.__cause__ = _of_number(errno.EROFS)
  assert outside.failure_of(error).what == 'the disk is read-only'
