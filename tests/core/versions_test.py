import platform
import re

import flax
import jax
import optax

from perlhf_jax.core import versions


def test_versions_are_those_that_run():
  found = versions.describe()
  assert found['python'] == platform.python_version()
  for library in (jax, flax, optax):
    assert found[library.__name__] == library.__version__
  assert re.fullmatch(r'\S.* \(source [0-9a-f]{12}\)', found['perlhf_jax'])
  assert found == versions.describe()


def test_another_source_is_another_version(tmp_path, monkeypatch):
  monkeypatch.setattr(versions, '_PACKAGE', tmp_path)
  (tmp_path / 'a.py').write_text('a = 1')
  before = versions.describe()
  (tmp_path / 'a.py').write_text('a = 2')
  after = versions.describe()
  assert before.pop('perlhf_jax') != after.pop('perlhf_jax')
  assert before == after
