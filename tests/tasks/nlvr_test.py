import pytest
import seqio
import task_files

from perlhf_jax.core import errors
from tasks import nlvr


def records(count):
  """Statements of which two at a time were made together."""
  return [
    {
      'sentence': f'There are {index} boxes.',
      'label': 'true' if index % 3 else 'false',
      'identifier': f'{index // 2}-{index % 2}',
      'directory': str(index % 4),
    }
    for index in range(count)
  ]


def rows(task, split):
  return list(seqio.TaskRegistry.get(task).source.rows(split))


def sizes():
  return {
    split: len(rows('nlvr_sft', split))
    for split in ('train', 'validation', 'test')
  }


@pytest.mark.parametrize(
  'place', ['nlvr/nlvr/{0}', 'nlvr/{0}', 'nlvr', 'nlvr-{0}', '{0}', '.']
)
def test_three_files_are_the_splits(data_dir, place):
  for name, count in (('train', 20), ('dev', 6), ('test', 4)):
    task_files.write_lines(
      data_dir / place.format(name) / f'{name}.json', records(count)
    )
  assert sizes() == {'train': 20, 'validation': 6, 'test': 4}
  last = rows('nlvr_sft', 'validation')[-1]
  image = data_dir / place.format('dev') / 'images/1/dev-2-1-0.png'
  assert last['images'] == [str(image)]


def test_without_the_test_file_dev_is_test(data_dir):
  task_files.write_lines(data_dir / 'train/train.json', records(400))
  task_files.write_lines(data_dir / 'dev/dev.json', records(6))
  found = sizes()
  assert found['test'] == 6
  assert found['train'] + found['validation'] == 400
  assert 0 < found['validation'] < 60


def test_dev_alone_is_split_by_what_was_made_together(data_dir):
  task_files.write_lines(data_dir / 'nlvr-dev/dev.json', records(200))
  groups = {
    split: {
      row['images'][0].rpartition('/')[2].split('-')[1]
      for row in rows('nlvr_sft', split)
    }
    for split in ('train', 'validation', 'test')
  }
  assert sum(sizes().values()) == 200
  assert sum(len(group) for group in groups.values()) == 100
  assert len(groups['train']) > 65 and groups['validation'] and groups['test']


def test_both_labels_are_judged(data_dir):
  for name in ('train', 'dev', 'test'):
    task_files.write_lines(data_dir / name / f'{name}.json', records(6))
  judged = rows('nlvr_rm', 'test')
  found = [(row['targets'], row['label']) for row in judged[:4]]
  assert found == [('false', 1), ('true', 0), ('true', 1), ('false', 0)]
  prompts = rows('nlvr_prompts', 'test')
  assert [row['references'] for row in prompts[:2]] == [['false'], ['true']]
  record = records(6)[1]
  assert nlvr.to_prompt_and_response(record) == ('There are 1 boxes.', 'true')


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    ({'label': True}, 'the label is True, not true or false'),
    ({'sentence': ' '}, 'is empty'),
    ({'sentence': None}, 'wrong type'),
    ({'identifier': 7}, 'wrong type'),
  ],
)
def test_bad_records_are_named(data_dir, change, problem):
  for name in ('train', 'dev', 'test'):
    task_files.write_lines(
      data_dir / name / f'{name}.json', [records(1)[0] | change]
    )
  (row,) = rows('nlvr_prompts', 'test')
  assert problem in row['problem'] and row['origin'].endswith('test.json:1')


@pytest.mark.parametrize(
  'field', ['label', 'sentence', 'identifier', 'directory']
)
def test_missing_fields_are_named(data_dir, field):
  record = records(1)[0]
  del record[field]
  task_files.write_lines(data_dir / 'dev.json', [record])
  (row,) = rows('nlvr_rm', 'train')
  assert row['problem'] == f"the field '{field}' is missing"


def test_missing_files_say_where_to_get_them(data_dir):
  with pytest.raises(errors.DataError, match=r'nlvr/.*lil\.nlp.*CC BY'):
    rows('nlvr_rm', 'train')
