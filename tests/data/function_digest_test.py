import dataclasses
import functools
import importlib
import random
import re
import sys
import textwrap

import pytest

from perlhf_jax.data import function_digest
from perlhf_jax.data import json_rows
from perlhf_jax.data import whole_files

digest = function_digest.digest


@pytest.fixture
def modules(tmp_path, monkeypatch):
  """Writes modules of a user's, and imports them anew."""
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(sys, 'dont_write_bytecode', True)

  def write(**sources):
    for name, source in sources.items():
      (tmp_path / f'{name}.py').write_text(textwrap.dedent(source))
    importlib.invalidate_caches()
    for name in sources:
      sys.modules.pop(name, None)
    made = [importlib.import_module(name) for name in reversed(sources)]
    return made[0]

  yield write
  for path in tmp_path.glob('*.py'):
    sys.modules.pop(path.stem, None)


OWN = {
  'own_texts': """
    MARK = 'a'
    def clean(text):
      return text + MARK
    class Cleaner:
      def __init__(self, mark):
        self.mark = mark
      def __call__(self, text):
        return text + self.mark
  """,
  'own_tasks': """
    import json
    import own_texts
    from own_texts import Cleaner
    def parse(record):
      return own_texts.clean(json.dumps(record))
    def by_class(record):
      return Cleaner('x')(record)
    made = Cleaner('x')
  """,
}


def test_the_same_code_has_the_same_digest(modules):
  first = modules(**OWN)
  digests = [digest(getattr(first, n)) for n in ('parse', 'by_class', 'made')]
  assert len(set(digests)) == 3
  again = modules(**OWN)
  assert again is not first
  assert digests == [
    digest(getattr(again, n)) for n in ('parse', 'by_class', 'made')
  ]


@pytest.mark.parametrize('name', ['parse', 'by_class', 'made'])
def test_what_a_function_calls_elsewhere_counts(modules, name):
  before = digest(getattr(modules(**OWN), name))
  changed = OWN['own_texts'].replace('text + MARK', 'text * 2')
  changed = changed.replace('text + self.mark', 'text * 2')
  after = digest(getattr(modules(**{**OWN, 'own_texts': changed}), name))
  assert after != before


def test_what_has_been_set_since_counts(modules):
  tasks = modules(**OWN)
  before = digest(tasks.parse)
  sys.modules['own_texts'].MARK = 'b'
  assert digest(tasks.parse) != before
  before = digest(tasks.made)
  tasks.made.mark = 'y'
  assert digest(tasks.made) != before


def _adds(text, times=1, *, end=''):
  return lambda record: record + text * times + end


@dataclasses.dataclass(frozen=True)
class Settings:
  names: tuple[str, ...]
  ratio: float


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    (_adds('a'), _adds('b')),
    (_adds('a', 1), _adds('a', 2)),
    (_adds('a', end='.'), _adds('a', end='!')),
    (functools.partial(_adds, 'a'), functools.partial(_adds, 'b')),
    (lambda r: r['a'], lambda r: r['b']),
    (lambda r, k='a': r[k], lambda r, k='b': r[k]),
    (re.compile('a'), re.compile('a', re.IGNORECASE)),
    (Settings(('a',), 0.5), Settings(('a',), 0.25)),
    ({'a': 1}, {'a': 2}),
    ([1, 2], (1, 2)),
    ('1', 1),
    (1, True),
    (len, max),
  ],
)
def test_what_differs_has_another_digest(one, other):
  assert digest(one) == digest(one)
  assert digest(one) != digest(other)


def test_the_order_of_sets_does_not_count():
  assert digest({'a', 'b', 'c'}) == digest({'c', 'b', 'a'})


def _opens(record):
  return open(record['path']).read()


def _draws(record):
  return random.random()


def _calls(record):
  return _draws(record)


def _reads(path):
  return whole_files.read(path)


def _imports(record):
  from tests_own import something

  return something(record)


@pytest.mark.parametrize(
  ('function', 'reason'),
  [
    (_opens, "uses 'open'"),
    (_draws, "uses 'random'"),
    (_calls, r"_draws .*uses 'random'"),
    (_reads, "uses 'whole_files'"),
    (whole_files.read, 'reads other files'),
    (_imports, "imports 'tests_own'"),
    (functools.partial(_adds, object()), 'object'),
    (random.Random(0).random, 'Random'),
  ],
)
def test_what_may_depend_on_anything_has_none(function, reason):
  with pytest.raises(function_digest.UnknownError, match=reason):
    digest(function)


def test_our_readers_of_json_are_known():
  assert digest(json_rows.read) != digest(json_rows.read_lines)
