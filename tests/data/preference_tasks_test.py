import json

import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import kinds
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources


@pytest.fixture(autouse=True)
def clean_registry():
  before = set(seqio.TaskRegistry.names())
  yield
  for name in set(seqio.TaskRegistry.names()) - before:
    seqio.TaskRegistry.remove(name)


def parse(record):
  return {
    'inputs': record['q'],
    'chosen': record['good'],
    'rejected': record['bad'],
  }


def write(path, count):
  rows = [{'q': f'q{i}', 'good': f'g{i}', 'bad': 'b'} for i in range(count)]
  path.write_text('\n'.join(json.dumps(row) for row in rows))


def rows(task, split):
  dataset = task.get_dataset(None, split, shuffle=False)
  return list(dataset.as_numpy_iterator())


def test_one_file_is_split_by_hash(tmp_path):
  write(tmp_path / 'pairs.jsonl', 50)
  task = preference_tasks.add_preference_task(
    'toy_rm',
    'pairwise',
    parse,
    files='pairs.jsonl',
    splits={'train': 0.5, 'test': 0.5},
    base_dir=str(tmp_path),
  )
  assert seqio.get_mixture_or_task('toy_rm') is task
  train, test = rows(task, 'train'), rows(task, 'test')
  assert len(train) + len(test) == 50
  assert min(len(train), len(test)) > 10
  assert train[0]['chosen'].startswith(b'g')


def test_a_file_for_each_split(tmp_path):
  write(tmp_path / 'a.jsonl', 3)
  write(tmp_path / 'b.jsonl', 2)
  task = preference_tasks.add_preference_task(
    'toy_rm',
    'pairwise',
    parse,
    files={'train': 'a.jsonl', 'test': 'b.jsonl'},
    base_dir=str(tmp_path),
  )
  assert (len(rows(task, 'train')), len(rows(task, 'test'))) == (3, 2)


def test_default_splits():
  task = preference_tasks.add_preference_task(
    'toy_rm', 'pairwise', parse, files='pairs.jsonl'
  )
  assert list(task.splits) == ['train', 'validation']


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_kinds_are_recognised_by_their_features(kind):
  features = preference_tasks.text_features(kind)
  assert kinds.of_features(features).name == kind


def test_mistakes_are_named():
  def add(name='toy', kind='sft', **kwargs):
    preference_tasks.add_preference_task(name, kind, parse, **kwargs)

  add(files='a.jsonl')
  with pytest.raises(errors.ConfigError, match="already a task 'toy'"):
    add(files='a.jsonl')
  with pytest.raises(errors.ConfigError, match=r"kind 'pair'.*pairwise"):
    add(name='other', kind='pair', files='a.jsonl')
  with pytest.raises(errors.ConfigError, match='leave out splits'):
    add(name='other', files={'train': 'a.jsonl'}, splits={'train': 1.0})
  source = sources.PythonSource(
    'sft', ['train'], lambda _: [], sources.DatasetInfo()
  )
  with pytest.raises(errors.ConfigError, match="already a task 'toy'"):
    preference_tasks.add_text_task('toy', source)


@pytest.mark.parametrize(
  'splits',
  [
    {'train': 0.9, 'validation': 0.9},
    {'train': 1.5, 'validation': -0.5},
    {'train': '90%', 'validation': '10%'},
    {'train': 1.0, 'validation': 0},
    ['train', 'validation'],
    {},
  ],
)
def test_splits_must_add_up_to_1(splits):
  with pytest.raises(errors.ConfigError, match=r'splits is .*add up to 1'):
    preference_tasks._check_shares('toy', splits)


def test_splits_that_add_up_to_1_pass():
  for splits in (
    {'a': 1},
    {'a': 0.1, 'b': 0.2, 'c': 0.7},
    dict.fromkeys('abc', 1 / 3),
  ):
    preference_tasks._check_shares('toy', splits)


@pytest.mark.parametrize(
  'files', [None, (), {}, ['rows.jsonl'], {'train': ['a.jsonl']}, [['a.jsonl']]]
)
def test_files_that_are_no_patterns_are_named(files):
  with pytest.raises(errors.ConfigError, match=r'files is .*one pattern'):
    preference_tasks._layouts('toy', files, None)


def test_source_and_licence_are_kept():
  task = preference_tasks.add_preference_task(
    'toy', 'pairwise', parse, 'a.jsonl', source='us', licence='CC0'
  )
  assert task.source.info == sources.DatasetInfo(homepage='us', licence='CC0')


@pytest.mark.parametrize(
  ('name', 'function', 'wanted'),
  [
    ('my task', parse, "'my task' cannot be registered: .*invalid characters"),
    ('toy', lambda a, b: None, "'toy': parse is .*missing a required argument"),
  ],
)
def test_what_cannot_be_registered_is_named(name, function, wanted):
  with pytest.raises(errors.ConfigError, match=wanted):
    preference_tasks.add_preference_task(name, 'pairwise', function, 'a.jsonl')
