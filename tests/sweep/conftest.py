import pytest
from small_sweeps import Runs

from perlhf_jax.sweep import children as children_lib
from perlhf_jax.sweep import command_checks


@pytest.fixture(name='runs')
def _runs(tmp_path, monkeypatch):
  """Stands for the commands that a sweep runs."""
  runs = Runs(tmp_path / 'out')
  monkeypatch.setattr(children_lib.Children, 'run', lambda *a: runs.run(*a))
  monkeypatch.setattr(command_checks, 'check', runs.check)
  return runs
