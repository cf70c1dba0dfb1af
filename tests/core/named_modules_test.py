import importlib
import sys

import pytest

from perlhf_jax.core import named_modules


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The current folder, and a fresh import system."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [p for p in sys.path if p])
  before = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - before:
    del sys.modules[name]


def test_a_module_that_is_named_is_found(folder):
  (folder / 'mine_a.py').write_text('X = 1\n')
  with pytest.raises(ModuleNotFoundError):
    importlib.import_module('mine_a')
  assert named_modules.import_module('mine_a').X == 1


def test_a_package_is_found_with_what_is_in_it(folder):
  (folder / 'mine_b').mkdir()
  (folder / 'mine_b' / '__init__.py').write_text('')
  (folder / 'mine_b' / 'inner.py').write_text('from mine_b import other\n')
  (folder / 'mine_b' / 'other.py').write_text('X = 2\n')
  assert named_modules.import_module('mine_b.inner').other.X == 2


def test_what_it_imports_is_found_now_and_later(folder):
  (folder / 'mine_c.py').write_text(
    'import mine_d\n\ndef later():\n  import mine_e\n  return mine_e.X\n'
  )
  (folder / 'mine_d.py').write_text('X = 3\n')
  (folder / 'mine_e.py').write_text('X = 4\n')
  module = named_modules.import_module('mine_c')
  assert module.mine_d.X == 3
  assert module.later() == 4


def test_what_a_library_tries_to_import_is_not_found(folder, monkeypatch):
  library = folder / 'site'
  library.mkdir()
  (library / 'some_library.py').write_text(
    'try:\n  import mine_f as FOUND\nexcept ImportError:\n  FOUND = None\n'
  )
  monkeypatch.syspath_prepend(library)
  (folder / 'mine_f.py').write_text('')
  (folder / 'mine_g.py').write_text('import some_library\n')
  assert not named_modules.import_module('mine_g').some_library.FOUND


def test_what_is_installed_comes_first(folder):
  (folder / 'json.py').write_text('raise ValueError\n')
  (folder / 'mine_h.py').write_text('import json\n')
  module = named_modules.import_module('mine_h')
  assert module.json is sys.modules['json']


def test_a_name_is_good_for_one_import(folder):
  (folder / 'mine_i.py').write_text('')
  named_modules.import_module('mine_i')
  del sys.modules['mine_i']
  with pytest.raises(ModuleNotFoundError):
    importlib.import_module('mine_i')
