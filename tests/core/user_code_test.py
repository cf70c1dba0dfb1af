import functools
import importlib
import json
import sys

import gin
import pytest

from perlhf_jax.core import strict_json
from perlhf_jax.core import user_code

_MODULE = """
import json


def deep(record):
  return shallow(record)


def shallow(record):
  return record['no such field']


def library(record):
  return json.loads(record)


class Object:
  def __call__(self, record):
    return 1 / 0
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  (tmp_path / 'their_code.py').write_text(_MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(tmp_path)
  yield importlib.import_module('their_code')
  del sys.modules['their_code']


def _error(function, *args):
  with pytest.raises(Exception) as raised:
    function(*args)
  return user_code.describe(raised.value)


def test_the_innermost_line_of_the_users_is_named(module):
  assert _error(module.deep, {}) == (
    "KeyError: 'no such field' (their_code.py:10, in shallow: "
    "return record['no such field'])"
  )
  # Not that of the library in which it arose.
  message = _error(module.library, '{')
  assert message.startswith('JSONDecodeError: Expecting property name')
  assert message.endswith(
    '(their_code.py:14, in library: return json.loads(record))'
  )
  assert '(their_code.py:19, in __call__: return 1 / 0)' in _error(
    module.Object(), {}
  )


def test_a_mistake_in_writing_is_where_it_stands(tmp_path, monkeypatch):
  (tmp_path / 'their_mistake.py').write_text('a = 1\ndef f(:\n  pass\n')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(tmp_path)
  assert _error(importlib.import_module, 'their_mistake') == (
    'SyntaxError: invalid syntax (their_mistake.py:2: def f(:)'
  )


def test_ours_and_pythons_own_lines_are_not_the_users(monkeypatch):
  try:
    strict_json.loads('NaN')
  except ValueError as error:
    error.__traceback__ = error.__traceback__.tb_next  # Without this file.
    described = user_code.describe(error)
  assert described == 'ValueError: NaN is not JSON; write null'


def test_places(module):
  assert user_code.place_of(module.deep) == 'their_code.deep (their_code.py:5)'
  partial = functools.partial(module.deep, {})
  assert user_code.place_of(partial) == user_code.place_of(module.deep)
  place = user_code.place_of(module.Object())
  assert place == 'their_code.Object (their_code.py:18)'
  assert user_code.place_of(dict) == 'builtins.dict'
  assert user_code.place_of(json.loads).startswith('json.loads (/')


@pytest.mark.parametrize(
  ('function', 'name'),
  [
    (_error, '_error'),
    (functools.partial(_error, 3), '_error'),
    (functools.partial(functools.partial(_error, 3), 4), '_error'),
    (type('Judge', (), {'__call__': len})(), 'Judge'),
  ],
)
def test_names(function, name):
  assert user_code.name_of(function) == f'{__name__}.{name}'


def test_what_gin_appends_is_left_out(module):
  gin.clear_config()
  gin.parse_config(
    'from __gin__ import dynamic_registration\n'
    'import their_code\n'
    'their_code.deep.record = {}\n'
  )
  assert _error(gin.get_configurable(module.deep)) == (
    "KeyError: 'no such field' (their_code.py:10, in shallow: "
    "return record['no such field'])"
  )
  gin.clear_config()
