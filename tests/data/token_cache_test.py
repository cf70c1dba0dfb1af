import json
import os

import numpy as np
import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.core import start_cache
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import json_rows
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from perlhf_jax.data import token_cache
from perlhf_jax.data import token_identity
from perlhf_jax.data import vocabularies

LENGTHS = {'inputs': 12, 'targets': 6}
BYTES = vocabularies.byte_vocabulary()
ROWS = [
  {
    'inputs': '' if i in (3, 8) else f'prompt {i}' + 'é' * i,
    'chosen': f'good {i}' * (1 + i % 3),
    'rejected': f'bad {i}',
    'margin': i / 7,
  }
  for i in range(12)
]
PREFIX = ''


def parse(record):
  return {**record, 'inputs': PREFIX + record['inputs']}


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A folder in which everything is kept, however new and quick it is."""
  folder = tmp_path / 'cache'
  monkeypatch.setenv(start_cache.VARIABLE, str(folder))
  monkeypatch.setattr(token_cache, '_LEAST_SECONDS', 0.0)
  monkeypatch.setattr(token_identity, '_SETTLED_SECONDS', -1e9)
  return folder / 'tokens'


@pytest.fixture
def data(tmp_path):
  path = tmp_path / 'toy.jsonl'
  path.write_text('\n'.join(map(json.dumps, ROWS)))
  add(tmp_path)
  yield path
  seqio.TaskRegistry.remove('toy')


def add(folder, parse=parse, kind='pairwise', **options):
  if 'toy' in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove('toy')
  files = {'train': 'toy.jsonl'}
  preference_tasks.add_preference_task(
    'toy', kind, parse, files, base_dir=str(folder), **options
  )


def load(vocabulary=BYTES, lengths=LENGTHS, **options):
  options = {'skip_bad_rows': True, **options}
  config = input_pipeline.DatasetConfig('toy', lengths, **options)
  return input_pipeline.load_examples(config, vocabulary)


def content(examples):
  """All that was read, to the bit."""
  columns = {}
  for name, column in examples.columns.items():
    arrays = [column]
    if not isinstance(column, np.ndarray):
      arrays = [column.values, column.ends]
    columns[name] = [(a.dtype, a.shape, a.tobytes()) for a in arrays]
  counts = examples.num_skipped, examples.num_truncated
  return columns, examples.origins, examples.references, counts


def entries(cache):
  return sorted(cache.iterdir()) if cache.exists() else []


@pytest.fixture
def no_reading(monkeypatch):
  """Has reading the files fail from the second time on."""

  def rows(self, split):
    raise AssertionError('the files were read')

  def forbid():
    monkeypatch.setattr(sources.FileSource, 'rows', rows)

  return forbid


def test_a_second_start_reads_arrays(cache, data, no_reading, caplog):
  first = load()
  warnings = [r.getMessage() for r in caplog.records if r.levelname != 'INFO']
  assert 'skipped 2 unusable rows' in warnings[0]
  no_reading()
  caplog.clear()
  caplog.set_level('INFO')
  second = load()
  assert content(second) == content(first)
  lines = [record.getMessage() for record in caplog.records]
  (entry,) = entries(cache)
  assert (
    lines[0] == f'toy/train: using the tokens of an earlier start, in {entry}'
  )
  # What is said of the rows is the same, skipped ones included.
  assert warnings == [
    r.getMessage() for r in caplog.records if r.levelname != 'INFO'
  ]


def test_rows_are_those_of_no_cache(cache, data, monkeypatch):
  kept = [content(load()) for _ in range(2)]
  monkeypatch.setenv(start_cache.VARIABLE, start_cache.OFF)
  assert kept == [content(load())] * 2


def test_lists_are_kept(cache, data, no_reading):
  data.write_text(json.dumps({'inputs': 'a', 'references': ['b', 'ü']}))
  add(data.parent, dict, 'prompts', references=True)
  first = load()
  no_reading()
  assert load().references == first.references == [['b', 'ü']]


def test_mistakes_are_told_again(cache, data):
  load()
  messages = []
  for _ in range(2):
    with pytest.raises(errors.DataError, match=r'toy\.jsonl:4') as raised:
      load(skip_bad_rows=False)
    messages.append(str(raised.value))
  assert messages[0] == messages[1]
  assert len(entries(cache)) == 1


def test_a_missing_file_is_told_whatever_is_kept(cache, data):
  load()
  data.unlink()
  with pytest.raises(errors.DataError, match='No data under'):
    load()


def test_a_file_of_the_same_size_and_date_is_read_again(cache, data):
  before = load().columns['inputs'].values.tobytes()
  status = data.stat()
  data.write_text(data.read_text().replace('prompt 1', 'Prompt 1'))
  os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
  assert data.stat().st_size == status.st_size
  assert load().columns['inputs'].values.tobytes() != before
  assert len(entries(cache)) == 2


@pytest.mark.parametrize(
  'change',
  [
    {'lengths': {'inputs': 13, 'targets': 6}},
    {'lengths': {'inputs': 12, 'targets': 7}},
    {'vocabulary': vocabularies.byte_vocabulary(3)},
    {'truncate_prompt': 'keep_start'},
    {'max_examples': 5},
    {'part': (0, 2)},
  ],
)
def test_options_that_change_rows_have_their_own(cache, data, change):
  load()
  changed = content(load(**change))
  assert len(entries(cache)) == 2
  assert content(load(**change)) == changed
  assert len(entries(cache)) == 2


def test_options_of_batches_share_rows(cache, data):
  load()
  load(batch_size=3, seed=4, shuffle=False, length_buckets=0)
  assert len(entries(cache)) == 1


def test_another_parse_gives_other_rows(cache, data, monkeypatch):
  load()
  # A function that is defined elsewhere, a closure, and a global that it reads.
  add(data.parent, lambda record: {**record, 'inputs': 'x' + record['inputs']})
  assert load().texts(0)['inputs'].startswith('x')

  def with_prefix(prefix):
    return lambda record: {**record, 'inputs': prefix + record['inputs']}

  for prefix in ('y', 'z'):
    add(data.parent, with_prefix(prefix))
    assert load().texts(0)['inputs'].startswith(prefix)
  add(data.parent)
  monkeypatch.setitem(globals(), 'PREFIX', 'w')
  assert load().texts(0)['inputs'].startswith('w')
  assert len(entries(cache)) == 5


def _open_something(record):
  with open(record['file']) as file:
    return {**record, 'inputs': file.read()}


def _read_something_else(path):
  from perlhf_jax.data import whole_files

  whole_files.read(path)
  yield from json_rows.read(path)


def test_rows_that_may_change_otherwise_are_not_kept(cache, data, monkeypatch):
  add(data.parent, _open_something)
  with pytest.raises(errors.DataError, match='the field'):
    load(skip_bad_rows=False)
  data.write_text('\n'.join(json.dumps({**r, 'file': 'x'}) for r in ROWS[:2]))
  (data.parent / 'x').write_text('x')
  monkeypatch.chdir(data.parent)
  load()
  add(data.parent, parse, read=_read_something_else)
  load()
  add(data.parent)
  source = sources.PythonSource(
    'pairwise', ['train'], lambda split: ROWS[:2], sources.DatasetInfo()
  )
  seqio.TaskRegistry.remove('toy')
  preference_tasks.add_text_task('toy', source)
  load()
  assert entries(cache) == []


def test_what_is_being_written_is_not_kept(cache, data, monkeypatch):
  monkeypatch.setattr(token_identity, '_SETTLED_SECONDS', 60)
  load()
  assert entries(cache) == []


def test_what_changes_while_it_is_read_is_not_kept(cache, data, monkeypatch):
  rows = sources.FileSource.rows

  def changing(self, split):
    yield from rows(self, split)
    data.write_text(data.read_text() + '\n')

  monkeypatch.setattr(sources.FileSource, 'rows', changing)
  load()
  assert entries(cache) == []


def test_quick_reads_are_not_kept(cache, data, monkeypatch):
  monkeypatch.setattr(token_cache, '_LEAST_SECONDS', 60)
  load()
  assert entries(cache) == []


def _cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  ('name', 'damage'),
  [
    ('values.chosen.npy', _cut),
    ('values.chosen.npy', _flip),
    ('ends.inputs.npy', _flip),
    ('number.margin.npy', _flip),
    ('origins.npy', _flip),
    ('origins.npy', os.unlink),
    ('origins.npy', lambda path: path.write_bytes(b'')),
    ('manifest.json', _cut),
    ('manifest.json', os.unlink),
    ('manifest.json', lambda path: path.write_text('[]')),
    ('manifest.json', lambda path: path.write_text('{"identity": "other"}')),
  ],
)
def test_a_damaged_entry_is_made_again(
  cache, data, no_reading, caplog, name, damage
):
  first = content(load())
  (entry,) = entries(cache)
  damage(entry / name)
  caplog.clear()
  assert content(load()) == first
  assert any(f'{entry} is damaged' in r.getMessage() for r in caplog.records)
  assert entries(cache) == [entry]
  no_reading()
  assert content(load()) == first


def test_a_folder_that_cannot_be_written_is_a_warning(
  tmp_path, cache, data, monkeypatch, caplog
):
  expected = content(load())
  (tmp_path / 'a_file').touch()
  monkeypatch.setenv(start_cache.VARIABLE, str(tmp_path / 'a_file' / 'x'))
  caplog.clear()
  assert content(load()) == expected
  (warning,) = [
    r.getMessage() for r in caplog.records if start_cache.VARIABLE in r.message
  ]
  assert str(tmp_path / 'a_file' / 'x') in warning


def test_a_disk_that_is_full_is_a_warning(cache, data, monkeypatch, caplog):
  def save(*args, **kwargs):
    raise OSError('No space left on device')

  expected = content(load())
  start_cache.remove(entries(cache)[0])
  monkeypatch.setattr(np, 'save', save)
  assert content(load()) == expected
  assert any('No space left' in r.getMessage() for r in caplog.records)
  assert entries(cache) == []


def test_two_processes_may_write_the_same(cache, data, monkeypatch):
  first = content(load())
  loaded = token_cache._load
  # The other one had finished between our look and our writing.
  monkeypatch.setattr(token_cache, '_load', lambda *args: None)
  assert content(load()) == first
  monkeypatch.setattr(token_cache, '_load', loaded)
  assert len(entries(cache)) == 1
  assert content(load()) == first
