import platform
import re

import jax

from perlhf_jax.core import versions


def test_versions_are_those_that_run():
  lines = versions.describe()
  assert f'python: {platform.python_version()}' in lines
  assert f'jax: {jax.__version__}' in lines
  assert re.fullmatch(r'perlhf: \S.* \(source [0-9a-f]{12}\)', lines[0])
  assert lines == versions.describe()


def test_another_source_is_another_version(tmp_path, monkeypatch):
  monkeypatch.setattr(versions, '_PACKAGE', tmp_path)
  (tmp_path / 'a.py').write_text('a = 1')
  before = versions.describe()
  (tmp_path / 'a.py').write_text('a = 2')
  after = versions.describe()
  assert before[0] != after[0]
  assert before[1:] == after[1:]
