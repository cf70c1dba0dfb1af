import contextlib
import resource

import folders
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from perlhf_jax.core import errors
from perlhf_jax.interop import output
from perlhf_jax.interop import safetensors_output

WEIGHTS = 'model.safetensors'


def _contents(made=None, size=100):
  """Three tensors in two files; their names go into `made` as they are made."""
  made = [] if made is None else made

  def tensor(name, dtype):
    def make():
      made.append(name)
      return np.full((size, 3), len(name), np.float32)

    return safetensors_output.Tensor((size, 3), dtype, make)

  return output.Contents(
    {'README.md': 'Ours.', 'config.json': '{}', 'spiece.model': b'\xff'},
    {
      WEIGHTS: {
        'a': tensor('a', np.float32),
        'bb': tensor('bb', np.float32),
      },
      'head.safetensors': {'ccc': tensor('ccc', ml_dtypes.bfloat16)},
    },
  )


def _error(*arguments, **keywords):
  with pytest.raises(errors.CheckpointError) as caught:
    output.write(*arguments, **keywords)
  return str(caught.value)


@contextlib.contextmanager
def _files_no_larger_than(size):
  """Fails as a full disk does: a write stops half way through a file."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_and_tensors_are_as_described(tmp_path):
  made = []
  path = tmp_path / 'new' / 'model'
  output.write(_contents(made), path)
  assert made == ['a', 'bb', 'ccc']
  assert sorted(folders.files(path)) == [
    'README.md',
    'config.json',
    'head.safetensors',
    WEIGHTS,
    'spiece.model',
  ]
  assert (path / 'spiece.model').read_bytes() == b'\xff'
  tensors = safetensors_numpy.load_file(path / WEIGHTS)
  assert list(map(len, tensors)) == [1, 2]
  np.testing.assert_array_equal(tensors['bb'], np.full((100, 3), 2.0))
  head = safetensors_numpy.load_file(path / 'head.safetensors')
  assert head['ccc'].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(head['ccc'], np.full((100, 3), 3))
  # Beside it there is nothing.
  assert [entry.name for entry in path.parent.iterdir()] == ['model']


def test_folders_and_what_two_hold(tmp_path):
  both = _contents().inside('one') | _contents().inside('two/three')
  output.write(both, tmp_path)
  files = folders.files(tmp_path)
  assert len(files) == 10
  assert files[f'one/{WEIGHTS}'] == files[f'two/three/{WEIGHTS}']


def test_an_empty_directory_may_be_there(tmp_path):
  output.write(_contents(), tmp_path)
  assert (tmp_path / WEIGHTS).exists()


def test_what_is_there_is_refused_and_replaced_on_demand(tmp_path):
  path = tmp_path / 'model'
  output.write(_contents(), path)
  before = folders.files(path)
  made = []
  error = _error(_contents(made, size=5), path)
  assert 'already holds README.md' in error and '--overwrite' in error
  assert not made and folders.files(path) == before
  output.write(_contents(size=5), path, overwrite=True)
  assert len(folders.files(path)[WEIGHTS]) < len(before[WEIGHTS])
  assert [entry.name for entry in tmp_path.iterdir()] == ['model']


def test_what_is_no_model_is_never_replaced(tmp_path):
  (tmp_path / 'notes').mkdir()
  (tmp_path / 'notes' / 'thesis.txt').write_text('Dear')
  assert 'holds notes/thesis.txt, which belongs to no model' in _error(
    _contents(), tmp_path, overwrite=True
  )
  assert (tmp_path / 'notes' / 'thesis.txt').read_text() == 'Dear'
  file = tmp_path / 'file'
  file.write_text('x')
  assert 'is a file' in _error(_contents(), file, overwrite=True)
  assert 'is remote' in _error(_contents(), 'gs://bucket/model')


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_disk_that_is_full_half_way(overwrite, tmp_path):
  path = tmp_path / 'model'
  if overwrite:
    output.write(_contents(size=7), path)
  before = folders.files(path)
  made = []
  with _files_no_larger_than(1800):
    error = _error(_contents(made), path, overwrite=overwrite)
  assert made == ['a', 'bb']
  assert f'{path} cannot be written (File too large)' in error
  assert path.exists() == overwrite and folders.files(path) == before
  assert len(list(tmp_path.iterdir())) == overwrite


def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path):
  made = []
  size = 2**60
  error = _error(_contents(made, size=size), tmp_path / 'model')
  assert f'needs {size * (12 + 12 + 6):,} bytes' in error
  assert not made and not list(tmp_path.iterdir())


def test_a_place_that_may_not_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  error = _error(_contents(), tmp_path / 'file' / 'model')
  assert 'cannot be written' in error


def test_hosts_that_do_not_write_fetch_along(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  made = []
  with monkeypatch.context() as other:
    other.setattr(jax, 'process_index', lambda: 1)
    output.write(_contents(made), tmp_path / 'model')
  assert made == ['a', 'bb', 'ccc']
  assert not list(tmp_path.iterdir())
  # The first host too makes each once, wherever it fails.
  (tmp_path / 'notes.txt').write_text('')
  made.clear()
  _error(_contents(made), tmp_path)
  assert made == ['a', 'bb', 'ccc']
  made.clear()
  with _files_no_larger_than(1500):
    _error(_contents(made), tmp_path / 'model')
  assert made == ['a', 'bb', 'ccc']


def test_a_tensor_of_another_shape_than_planned(tmp_path):
  tensor = safetensors_output.Tensor((2,), np.float32, lambda: np.ones(3))
  with pytest.raises(ValueError, match=r'w is \(3,\); \(2,\) was planned'):
    safetensors_output.write(tmp_path / WEIGHTS, {'w': tensor})
