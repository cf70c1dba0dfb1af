import shutil

import gcs_server
import numpy as np
import pytest
import t5x_directories

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import t5x


@pytest.fixture
def asked(monkeypatch, tmp_path):
  for source in (t5x_directories.LEGACY, t5x_directories.ORBAX):
    shutil.copytree(source, tmp_path / 'models' / source.name)
  server, asked = gcs_server.mount(monkeypatch, tmp_path)
  yield asked
  server.shutdown()
  server.server_close()


def _address(source):
  return f'{gcs_server.BUCKET}/models/{source.name}'


@pytest.mark.parametrize('layout', ['LEGACY', 'ORBAX'])
def test_a_bucket_is_read_in_place(layout, asked):
  source = getattr(t5x_directories, layout)
  address = _address(source)
  assert t5x.is_t5x_checkpoint(address)
  assert not t5x.is_t5x_checkpoint(f'{gcs_server.BUCKET}/models/other')
  assert not asked
  config = t5x.load_config(address)
  assert config == t5x.load_config(source)
  found = tree_paths.flatten(t5x.load_params(address, config))
  expected = tree_paths.flatten(t5x.load_params(source, config))
  assert list(found) == list(expected)
  for path, array in expected.items():
    np.testing.assert_array_equal(found[path], array)
  assert all(name.startswith(f'models/{source.name}/') for name in asked)
  assert len(set(asked)) > 1


def test_a_file_that_the_bucket_lacks(asked, tmp_path):
  config = t5x.load_config(t5x_directories.LEGACY)
  address = _address(t5x_directories.LEGACY)
  step = tmp_path / 'models' / t5x_directories.LEGACY.name / 'checkpoint_7'
  (step / t5x_directories.folder_of(t5x_directories.QUERY) / '0.0').unlink()
  with pytest.raises(errors.CheckpointError) as caught:
    t5x.load_params(address, config)
  error = str(caught.value)
  assert error.startswith(f'{address}/checkpoint_7: tensor ')
  assert t5x_directories.QUERY in error and asked


def test_other_remote_folders_are_refused(monkeypatch):
  monkeypatch.setattr('etils.epath.gpath.PosixGPath.is_dir', lambda _: True)
  monkeypatch.setattr('etils.epath.gpath.PosixGPath.exists', lambda _: True)
  index = t5x_directories.ORBAX / 'checkpoint_7' / 'state' / '_METADATA'
  monkeypatch.setattr(
    'perlhf_jax.core.plain_files.read', lambda *_, **__: index.read_bytes()
  )
  with pytest.raises(errors.CheckpointError, match='from gs://'):
    t5x.load_config('s3://bucket/checkpoint_7')


def test_a_bucket_is_not_written_to():
  with pytest.raises(errors.CheckpointError, match='gcloud storage cp -r'):
    t5x.save({}, t5x.load_config(t5x_directories.LEGACY), 'gs://bucket/x', 1)
