import pytest

from perlhf_jax.data import sources


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
  """An empty data directory, which the environment names."""
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
  return tmp_path
