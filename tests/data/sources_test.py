from collections import Counter
import json
import re

import hypothesis
from hypothesis import strategies as st
import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import sources

INFO = sources.DatasetInfo('toy pairs', 'https://example.org/toy', 'CC0')
FRACTIONS = {'train': 0.8, 'validation': 0.1, 'test': 0.1}


def parse(record):
  if record.get('leave_out'):
    return None
  return {'inputs': record['p'], 'targets': record['r'].strip()}


def make(layouts, base_dir=None, kind='sft'):
  return sources.FileSource(kind, layouts, parse, INFO, base_dir)


def write(path, records):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(json.dumps(record) for record in records))


def numbered(count):
  return [{'p': f'prompt {i}', 'r': f'response {i}'} for i in range(count)]


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
  monkeypatch.delenv(sources.DATA_DIR_VARIABLE, raising=False)


@hypothesis.given(st.text(), st.dictionaries(st.text(), st.floats(0.1, 9)))
def test_a_key_always_falls_into_the_same_split(key, fractions):
  hypothesis.assume(fractions)
  split = sources.split_by_hash(key, fractions)
  assert split in fractions
  assert split == sources.split_by_hash(key, dict(fractions))


def test_splits_do_not_change_between_releases():
  keys = ['', 'a', 'b', 'é', 'todo: x']
  assert [sources.split_by_hash(k, {'x': 0.5, 'y': 0.5}) for k in keys] == [
    *('y', 'y', 'x', 'x', 'x')
  ]


def test_splits_have_their_shares():
  counts = Counter(
    sources.split_by_hash(str(i), FRACTIONS) for i in range(5000)
  )
  for split, fraction in FRACTIONS.items():
    assert counts[split] / 5000 == pytest.approx(fraction, abs=0.02)


def test_rows_are_split_by_prompt_without_overlap(tmp_path):
  records = numbered(100) + numbered(100)  # Every prompt twice.
  write(tmp_path / 'rows.jsonl', records)
  source = make(
    [[sources.FileGroup(('rows.jsonl',), FRACTIONS)]], str(tmp_path)
  )
  prompts = {
    split: [row['inputs'] for row in source.rows(split)] for split in FRACTIONS
  }
  assert sum(len(rows) for rows in prompts.values()) == 200
  assert set(source.splits) == set(FRACTIONS)
  seen = [set(rows) for rows in prompts.values()]
  assert not seen[0] & seen[1] and not seen[0] & seen[2]
  for rows in prompts.values():
    assert set(Counter(rows).values()) == {2}


def test_files_of_each_split(tmp_path):
  write(tmp_path / 'a.jsonl', numbered(3))
  write(tmp_path / 'b.jsonl', numbered(2))
  source = make(
    [
      [
        sources.FileGroup(('a.jsonl',), {'train': 1.0}),
        sources.FileGroup(('b.jsonl',), {'test': 1.0}),
      ]
    ],
    str(tmp_path),
  )
  assert len(list(source.rows('train'))) == 3
  assert len(list(source.rows('test'))) == 2


def test_the_first_complete_layout_is_read(tmp_path):
  layouts = [
    [
      sources.FileGroup(('train.jsonl',), {'train': 1.0}),
      sources.FileGroup(('test.jsonl',), {'test': 1.0}),
    ],
    [sources.FileGroup(('test.jsonl',), {'train': 0.5, 'test': 0.5})],
  ]
  write(tmp_path / 'test.jsonl', numbered(20))
  source = make(layouts, str(tmp_path))
  half = len(list(source.rows('test')))
  assert 0 < half < 20
  write(tmp_path / 'train.jsonl', numbered(5))
  assert len(list(source.rows('test'))) == 20
  assert len(list(source.rows('train'))) == 5


def test_patterns_find_several_files_in_order(tmp_path):
  for index in (1, 0):
    write(tmp_path / f'part_{index}.jsonl', [{'p': f'p{index}', 'r': 'r'}])
  group = sources.FileGroup(('nothing.json', 'part_*.jsonl'), {'train': 1.0})
  rows = list(make([[group]], str(tmp_path)).rows('train'))
  assert [row['inputs'] for row in rows] == ['p0', 'p1']


def test_bad_rows_flow_with_origin_and_problem(tmp_path):
  path = tmp_path / 'rows.jsonl'
  lines = [
    json.dumps({'p': 'p', 'r': 'fine'}),
    '{"p": ',
    json.dumps({'p': 'p'}),
    json.dumps({'p': 'p', 'r': ' '}),
    json.dumps({'p': 'p', 'r': 3}),
    json.dumps({'leave_out': True}),
    json.dumps({'p': 'p', 'r': 'a\ud800'}),
  ]
  path.write_text('\n'.join(lines))
  source = make(
    [[sources.FileGroup(('*.jsonl',), {'train': 1.0})]], str(tmp_path)
  )
  rows = list(source.get_dataset('train').as_numpy_iterator())
  problems = [row['problem'].decode() for row in rows]
  assert problems[0] == ''
  assert 'not valid JSON' in problems[1]
  assert problems[2] == "the field 'r' is missing"
  assert 'empty' in problems[3]
  assert 'wrong type' in problems[4]
  assert 'surrogate' in problems[5]
  assert len(rows) == 6  # The record that parse left out is no problem.
  assert rows[1]['origin'].decode() == f'{path}:2'
  assert rows[5]['origin'].decode() == f'{path}:7'


def test_a_row_without_prompt_is_seen_by_every_split(tmp_path):
  (tmp_path / 'rows.jsonl').write_text('{"p": ')
  source = make([[sources.FileGroup(('*.jsonl',), FRACTIONS)]], str(tmp_path))
  for split in FRACTIONS:
    assert [bool(row['problem']) for row in source.rows(split)] == [True]


def test_the_data_directory_is_looked_up_when_data_is_read(
  tmp_path, monkeypatch
):
  source = make([[sources.FileGroup(('rows.jsonl',), {'train': 1.0})]])
  write(tmp_path / 'rows.jsonl', numbered(2))
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
  assert len(list(source.rows('train'))) == 2


def test_missing_data_says_where_to_get_it(tmp_path, monkeypatch):
  group = sources.FileGroup(('sub/rows.jsonl',), {'train': 1.0})
  where = 'Get toy pairs from https://example.org/toy.*CC0'
  with pytest.raises(errors.DataError, match=f'PERLHF_DATA_DIR.*{where}'):
    list(make([[group]]).rows('train'))
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path / 'nowhere'))
  with pytest.raises(errors.DataError, match=f'nowhere.*{where}'):
    list(make([[group]]).rows('train'))
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
  with pytest.raises(errors.DataError, match=rf'sub/rows\.jsonl.*{where}'):
    list(make([[group]]).rows('train'))


def test_a_missing_file_names_one_that_is_there(tmp_path):
  write(tmp_path / 'row.jsonl', numbered(2))
  source = make(
    [[sources.FileGroup(('rows.jsonl',), {'train': 1.0})]], str(tmp_path)
  )
  with pytest.raises(
    errors.DataError,
    match=rf"No data under '{tmp_path}' \(base_dir of the task\): looked for "
    r'rows\.jsonl in .*\. Did you mean row\.jsonl\? ',
  ):
    source.shards('train')


def test_data_of_no_known_origin_still_says_what_to_do(tmp_path, monkeypatch):
  group = sources.FileGroup(('rows.jsonl',), {'train': 1.0})
  source = sources.FileSource('sft', [[group]], parse, sources.DatasetInfo())
  with pytest.raises(errors.DataError, match='export PERLHF_DATA_DIR='):
    source.shards('train')
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
  with pytest.raises(errors.DataError, match='Put the files there'):
    source.shards('train')
  path = tmp_path / 'rows.jsonl'
  path.mkdir()
  with pytest.raises(errors.DataError, match=f'{path} is a folder'):
    source.shards('train')
  path.rmdir()
  path.write_text('')
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(path))
  with pytest.raises(errors.DataError, match='is a file, not a directory'):
    source.shards('train')


def test_an_empty_split_is_explained(tmp_path):
  path = tmp_path / 'rows.jsonl'
  group = sources.FileGroup(('*.jsonl',), {'train': 0.5, 'test': 0.5})
  source = make([[group]], str(tmp_path))
  path.write_text('\n')
  assert source.why_empty('train') == f'{path} has no records'
  write(path, [{'leave_out': True}] * 3)
  assert re.fullmatch(
    r'sources_test\.parse \(.*sources_test\.py:\d+\) left out all 3 records '
    rf'of {path}, since it returned None for each \(is a return missing\?\)',
    source.why_empty('train'),
  )
  write(path, numbered(1))
  (empty,) = {'train', 'test'} - {
    split for split in ('train', 'test') if list(source.rows(split))
  }
  others = f'all 1 records of {path} belong to other splits'
  assert source.why_empty(empty) == others
  write(path, [*numbered(1), {'leave_out': True}])
  assert source.why_empty(empty).endswith(
    f'left out 1 records of {path}, and the other 1 belong to other splits'
  )
  write(tmp_path / 'more.jsonl', [])
  assert 'records of 2 files (' in source.why_empty(empty)


def _raises(split):
  yield {'inputs': 'p', 'targets': 'r'}
  raise ZeroDivisionError('of mine')


@pytest.mark.parametrize(
  ('make_rows', 'wanted'),
  [
    (lambda split: ['a'], "made 'a', of type str, as train#0"),
    (lambda split: [{'inputs': 'p'}], 'takes inputs, targets'),
    (lambda split: None, "returned a NoneType for the split 'train'"),
    (lambda split: {'inputs': 'p'}, 'returned a dict for'),
    (lambda: [], r'raised TypeError: .*takes 0 positional'),
    (
      _raises,
      r'_raises \(.*ZeroDivisionError: of mine \(.*, in _raises',
    ),
  ],
)
def test_a_function_that_makes_no_rows_is_named(make_rows, wanted):
  source = sources.PythonSource('sft', ['train'], make_rows, INFO)
  with pytest.raises(errors.DataError, match=wanted) as raised:
    source.get_dataset('train')
  assert 'sources_test.py:' in str(raised.value)


def test_python_source_checks_its_rows():
  source = sources.PythonSource(
    'pointwise',
    ['train'],
    lambda split: [
      {'inputs': split, 'targets': 'r', 'label': 1},
      {'inputs': split, 'targets': 'r', 'label': 7},
    ],
    INFO,
  )
  good, bad = source.get_dataset('train').as_numpy_iterator()
  assert (good['inputs'], good['label'], good['problem']) == (b'train', 1, b'')
  assert b'neither 0 nor 1' in bad['problem']
  assert bad['origin'] == b'train#1'
  assert source.location == 'built in'


def test_absent_margins_are_zero():
  rows = [{'inputs': 'p', 'chosen': 'a', 'rejected': 'b'}]
  source = sources.PythonSource('pairwise', ['train'], lambda _: rows, INFO)
  (row,) = source.get_dataset('train').as_numpy_iterator()
  assert row['margin'] == 0.0


def test_made_rows_are_one_shard():
  source = sources.PythonSource('sft', ['train'], lambda _: [], INFO)
  assert list(source.list_shards('train')) == ['train']
  with pytest.raises(ValueError, match='fewer than 2'):
    source.get_dataset('train', shard_info=seqio.ShardInfo(0, 2))


def test_each_file_is_a_shard_and_rows_know_their_position(tmp_path):
  for name, count in (('a', 3), ('b', 2), ('c', 4)):
    write(tmp_path / f'{name}.jsonl', numbered(count))
  groups = [
    sources.FileGroup(('[ab].jsonl',), {'train': 1.0}),
    sources.FileGroup(('c.jsonl',), {'train': 0.5, 'test': 0.5}),
  ]
  source = make([groups], str(tmp_path))
  names = [str(tmp_path / f'{name}.jsonl') for name in 'abc']
  assert list(source.list_shards('train')) == names
  assert list(source.list_shards('test')) == names[2:]
  whole = list(source.get_dataset('train').as_numpy_iterator())
  assert [row['position'].tolist() for row in whole[:5]] == [
    *([0, 0], [0, 1], [0, 2], [1, 0], [1, 1])
  ]
  for count in (2, 3):
    parts = [
      row
      for index in range(count)
      for row in source.get_dataset(
        'train', shard_info=seqio.ShardInfo(index, count)
      ).as_numpy_iterator()
    ]
    parts.sort(key=lambda row: row['position'].tolist())
    assert [row['origin'] for row in parts] == [row['origin'] for row in whole]


def test_a_split_that_no_file_has_is_an_empty_shard(tmp_path):
  layouts = [
    [sources.FileGroup(('no.jsonl',), {'train': 0.5, 'test': 0.5})],
    [sources.FileGroup(('a.jsonl',), {'train': 1.0})],
  ]
  write(tmp_path / 'a.jsonl', numbered(2))
  source = make(layouts, str(tmp_path))
  assert list(source.list_shards('test')) == ['test']
  dataset = source.get_dataset('test', shard_info=seqio.ShardInfo(0, 1))
  assert list(dataset.as_numpy_iterator()) == []
  assert dataset.element_spec['position'].shape == (2,)


def test_records_may_say_their_split_themselves(tmp_path):
  def find_splits(path):
    assert path == str(tmp_path / 'a.jsonl')
    names = {'a': 'train', 'b': 'test', 'd': 'dev'}
    return lambda record: names[record['part']]

  records = [
    {'p': 'one', 'r': 'x', 'part': 'a'},
    {'p': 'two', 'r': 'y', 'part': 'b'},
    # A record of no split, and one whose split is known but nothing else.
    {'p': 'three', 'r': 'z', 'part': 'c'},
    {'p': 'four', 'part': 'b'},
    # And one of a split that the task has not.
    {'p': 'five', 'r': 'v', 'part': 'd'},
  ]
  write(tmp_path / 'a.jsonl', records)
  group = sources.FileGroup(('a.jsonl',), {'train': 1.0, 'test': 1.0})
  source = sources.FileSource(
    'sft', ((group,),), parse, INFO, str(tmp_path), find_splits=find_splits
  )
  found = {
    split: [(row['inputs'], row['problem']) for row in source.rows(split)]
    for split in ('train', 'test')
  }
  lost = ('', "the field 'c' is missing")
  stray = ('', "the split is 'dev', not one of train, test")
  half = ('', "the field 'r' is missing")
  assert found['train'] == [('one', ''), lost, stray]
  assert found['test'] == [('two', ''), lost, half, stray]
