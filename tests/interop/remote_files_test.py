import collections
from concurrent import futures
import shutil
import threading

from absl import logging
from etils import epath
from etils.epath import backend
import hf_directories
import jax
import numpy as np
import pytest
import ram_bucket

from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf
from perlhf_jax.interop import remote_files

_TOKENIZER = 'tokenizer_config.json'
# Of files that are all read.
_SHARDED = {path.name for path in hf_directories.UNTIED.iterdir()}


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
  """The address of an empty folder in a bucket of the test's own."""
  ram_bucket.mount(monkeypatch, tmp_path)
  return f'ram://bucket{tmp_path}/t5'


@pytest.fixture
def copied(monkeypatch):
  """Counts the copies that are made of each file."""
  counts = collections.Counter()
  copy = backend.tf_backend.copy

  def counting(path, dst, overwrite):
    counts[path.rpartition('/')[2]] += 1
    copy(path, dst, overwrite)

  monkeypatch.setattr(backend.tf_backend, 'copy', counting)
  return counts


def _error(function, *arguments):
  with pytest.raises(errors.CheckpointError) as caught:
    function(*arguments)
  return str(caught.value)


@pytest.mark.parametrize(
  'source', [hf_directories.TIED, hf_directories.UNTIED], ids=lambda p: p.name
)
def test_a_remote_directory_is_the_local_one(source, bucket, tmp_path):
  ram_bucket.upload(source, bucket)
  assert hf.is_hf_directory(bucket)
  config = hf.load_config(bucket)
  assert config == hf.load_config(source)
  # Nothing is copied for its sake.
  assert not ram_bucket.copies(tmp_path)
  params = hf.load_params(bucket, config)
  jax.tree.map(
    np.testing.assert_array_equal, params, hf.load_params(source, config)
  )
  directory = hf.local_directory(bucket)
  vocabulary = vocabularies.load_from_hf_directory(str(directory))
  assert vocabulary == vocabularies.load_from_hf_directory(str(source))
  assert hf.is_hf_directory(directory)
  assert ram_bucket.copies(tmp_path) == [tmp_path.joinpath(directory)]


def test_a_local_directory_is_itself(tmp_path):
  assert hf.local_directory(hf_directories.TIED) == epath.Path(
    hf_directories.TIED
  )
  assert not ram_bucket.copies(tmp_path)


def test_what_is_not_there_is_no_directory(bucket):
  assert not hf.is_hf_directory(bucket)
  assert f'There is no directory {bucket}' in _error(hf.load_config, bucket)
  assert f'There is no directory {bucket}' in _error(hf.local_directory, bucket)


def test_only_files_that_are_read_are_copied(bucket, copied):
  ram_bucket.upload(hf_directories.TIED, bucket)
  for name in ('pytorch_model.bin', 'model.safetensors.index.json', 'README'):
    ram_bucket.write(f'{bucket}/{name}', b'')
  ram_bucket.write(f'{bucket}/spiece.model', b'')
  directory = hf.local_directory(bucket)
  expected = {'config.json', 'model.safetensors', _TOKENIZER, 'spiece.model'}
  assert copied == dict.fromkeys(expected, 1)
  assert {path.name for path in directory.iterdir()} == expected


def test_a_copy_is_used_again_until_the_files_change(
  bucket, copied, monkeypatch
):
  ram_bucket.upload(hf_directories.UNTIED, bucket)
  first = hf.local_directory(bucket)
  assert hf.local_directory(bucket) == first
  assert copied == dict.fromkeys(_SHARDED, 1)
  # Of another size.
  content = (hf_directories.UNTIED / _TOKENIZER).read_bytes() + b'\n'
  ram_bucket.write(f'{bucket}/{_TOKENIZER}', content)
  second = hf.local_directory(bucket)
  assert second != first and (second / _TOKENIZER).read_bytes() == content
  assert copied == dict.fromkeys(_SHARDED, 2)
  # Written again, with as many bytes.
  stat = backend.tf_backend.stat

  def later(path):
    result = stat(path)
    result.mtime += 1
    return result

  monkeypatch.setattr(backend.tf_backend, 'stat', later)
  assert hf.local_directory(bucket) not in (first, second)
  assert copied == dict.fromkeys(_SHARDED, 3)


def test_directories_with_equal_files_have_copies_of_their_own(bucket):
  ram_bucket.upload(hf_directories.TIED, f'{bucket}/a')
  ram_bucket.upload(hf_directories.TIED, f'{bucket}/b')
  assert hf.local_directory(f'{bucket}/a') != hf.local_directory(f'{bucket}/b')


@pytest.mark.parametrize('damage', ['partial', 'missing', 'truncated'])
def test_what_a_crash_has_left_is_made_anew(damage, bucket, copied, tmp_path):
  ram_bucket.upload(hf_directories.UNTIED, bucket)
  directory = tmp_path / hf.local_directory(bucket)
  shard = directory / 'model-00002-of-00002.safetensors'
  if damage == 'partial':
    shard.write_bytes(b'')
    directory.rename(f'{directory}.partial')
  elif damage == 'missing':
    shard.unlink()
  else:
    shard.write_bytes(shard.read_bytes()[:100])
  assert hf.local_directory(bucket) == epath.Path(directory)
  assert copied == dict.fromkeys(_SHARDED, 2)
  for path in hf_directories.UNTIED.iterdir():
    assert (directory / path.name).read_bytes() == path.read_bytes()
  assert ram_bucket.copies(tmp_path) == [directory]


def test_one_of_several_makes_the_copy_while_the_others_wait(
  bucket, copied, tmp_path
):
  ram_bucket.upload(hf_directories.UNTIED, bucket)
  start = threading.Barrier(4)

  # Threads open the lock's file as processes do, each for itself.
  def load(_):
    start.wait()
    return hf.local_directory(bucket)

  with futures.ThreadPoolExecutor(4) as pool:
    directories = set(pool.map(load, range(4)))
  assert len(directories) == 1
  assert copied == dict.fromkeys(_SHARDED, 1)


def test_the_log_says_what_is_copied_and_where(bucket, monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, 'info', lambda text, *values: lines.append(text % values)
  )
  ram_bucket.upload(hf_directories.TIED, bucket)
  directory = hf.local_directory(bucket)
  size = sum(p.stat().st_size for p in hf_directories.TIED.iterdir())
  assert lines[0] == (
    f'Copying 3 files ({size / 1000:.1f} kB) of {bucket} to {directory}.'
  )
  hf.local_directory(bucket)
  assert lines[2:] == [f'Reading {bucket} from its copy in {directory}.']


def test_a_disk_that_is_full_is_an_error_before_anything_is_copied(
  bucket, copied, monkeypatch
):
  ram_bucket.upload(hf_directories.TIED, bucket)
  usage = shutil.disk_usage('/')
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=5000))
  error = _error(hf.local_directory, bucket)
  assert f'{bucket} is copied to ' in error
  assert '76.9 kB there, where 5.0 kB are free. Set TMPDIR' in error
  assert not copied


def test_a_copy_that_fails_leaves_nothing(bucket, monkeypatch, tmp_path):
  ram_bucket.upload(hf_directories.UNTIED, bucket)
  copy = backend.tf_backend.copy

  def failing(path, dst, overwrite):
    if path.endswith('00002-of-00002.safetensors'):
      raise RuntimeError('no permission')
    copy(path, dst, overwrite)

  with monkeypatch.context() as patch:
    patch.setattr(backend.tf_backend, 'copy', failing)
    error = _error(hf.local_directory, bucket)
  assert f'{bucket} cannot be read or copied (RuntimeError: no perm' in error
  assert not ram_bucket.copies(tmp_path)
  assert hf.local_directory(bucket).is_dir()


def test_a_file_that_is_cut_short_is_an_error(bucket, monkeypatch, tmp_path):
  ram_bucket.upload(hf_directories.TIED, bucket)

  def cutting(path, dst, overwrite):
    tmp_path.joinpath(dst).write_bytes(b'{}')

  monkeypatch.setattr(backend.tf_backend, 'copy', cutting)
  error = _error(hf.local_directory, bucket)
  assert 'config.json has 631 bytes, of which 2 were copied' in error
  assert not ram_bucket.copies(tmp_path)


def test_what_is_missing_in_the_bucket_is_named_as_it_is_there(bucket):
  ram_bucket.upload(hf_directories.UNTIED, bucket)
  gfile = backend.tf_backend.gfile
  gfile.remove(f'{bucket}/model-00002-of-00002.safetensors')
  error = _error(hf.local_directory, bucket)
  assert f'{bucket} lacks model-00002-of-00002.safetensors' in error
  gfile.remove(f'{bucket}/model.safetensors.index.json')
  assert f'{bucket} has no weights' in _error(hf.local_directory, bucket)
  ram_bucket.write(f'{bucket}/pytorch_model.bin', b'')
  error = _error(hf.local_directory, bucket)
  assert f'{bucket} has its weights only as pytorch_model.bin' in error
  assert 'a local copy where torch' in error
  assert "from_pretrained('COPY').save_pretrained('COPY')" in error
  gfile.remove(f'{bucket}/config.json')
  for function in (hf.local_directory, hf.load_config):
    assert f'{bucket} has no config.json' in _error(function, bucket)


def test_an_index_cannot_have_files_written_elsewhere(bucket, copied):
  ram_bucket.upload(hf_directories.UNTIED, bucket)
  ram_bucket.write(
    f'{bucket}/model.safetensors.index.json',
    b'{"weight_map": {"shared.weight": "../../config.json"}}',
  )
  assert "'../../config.json', which is not the plain name of a file" in _error(
    hf.local_directory, bucket
  )
  assert not copied


@pytest.mark.parametrize(
  'function', [hf.is_hf_directory, hf.load_config, hf.local_directory]
)
def test_an_address_of_no_known_kind_is_an_error(function):
  error = _error(function, 'nowhere://bucket/t5')
  assert 'nowhere://bucket/t5 cannot be read or copied (KeyError' in error
  assert 'copy the directory to a local one' in error


def test_a_folder_of_another_user_is_not_used(bucket, monkeypatch):
  ram_bucket.upload(hf_directories.TIED, bucket)
  hf.local_directory(bucket)
  owner = remote_files.os.getuid()
  # The same folder, seen by somebody else.
  folder = remote_files._folder()
  monkeypatch.setattr(remote_files.os, 'getuid', lambda: owner + 1)
  folder.rename(folder.with_name(f'perlhf_jax-{owner + 1}'))
  assert 'belongs to another user). Set TMPDIR' in _error(
    hf.local_directory, bucket
  )
