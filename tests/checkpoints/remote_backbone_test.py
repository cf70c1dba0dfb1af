"""A Hugging Face directory in a bucket is as good as a local one."""

import pathlib

from etils import epath
import jax
import numpy as np
import pytest
import ram_bucket

from perlhf_jax.checkpoints import loading
from perlhf_jax.core import errors
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning

_SOURCE = pathlib.Path(__file__).parents[1] / 'golden/hf_t5_v1_1'


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """The address of a Hugging Face directory."""
  ram_bucket.mount(monkeypatch, tmp_path)
  address = f'ram://bucket{tmp_path}/t5'
  ram_bucket.upload(_SOURCE, address)
  return address


def test_the_backbone_is_that_of_the_local_directory(bucket):
  mesh = partitioning.make_mesh()
  local = loading.load_merged(str(_SOURCE), mesh)
  remote = loading.load_merged(bucket, mesh)
  # What an adapter records of its base, so that any machine finds it.
  assert remote.path == bucket
  assert remote.fingerprint == local.fingerprint
  assert (remote.config, remote.vocabulary) == (local.config, local.vocabulary)
  jax.tree.map(np.testing.assert_array_equal, remote.params, local.params)
  recorded = remote.describe(epath.Path('/local/run'))
  assert recorded == {'path': bucket, 'fingerprint': local.fingerprint}
  again = loading.load_recorded(
    recorded, 'The adapter', '/run/checkpoints/1', 'base', mesh
  )
  assert again.path == bucket


@pytest.mark.parametrize(
  ('name', 'error_class', 'message'),
  [
    (
      'model-00002-of-00002.safetensors',
      errors.CheckpointError,
      'cannot be read as safetensors',
    ),
    ('tokenizer_config.json', errors.ConfigError, 'is not valid JSON'),
  ],
)
def test_errors_about_the_copy_name_the_bucket(
  name, error_class, message, bucket
):
  ram_bucket.write(f'{bucket}/{name}', b'{')
  with pytest.raises(error_class, match=message) as caught:
    loading.load_merged(bucket, partitioning.make_mesh())
  assert f' is a copy of {bucket}; correct' in str(caught.value)


def test_a_host_that_cannot_copy_tells_the_others(bucket, monkeypatch):
  told = []
  monkeypatch.setattr(
    multihost, 'raise_together', lambda error: told.append(str(error)) or 1 / 0
  )
  monkeypatch.setattr('tempfile.tempdir', '/nowhere')
  with pytest.raises(ZeroDivisionError):
    loading.load_merged(bucket, partitioning.make_mesh())
  assert 'Set TMPDIR to a local folder' in told[0]
