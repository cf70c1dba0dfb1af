import pytest
import seqio
import task_files

from perlhf_jax.core import errors
from perlhf_jax.data import task_modules
from tasks import shp


def record(post, domain='askvet_train', label=1, ratio=4.0, **changes):
  return {
    'post_id': f'p{post}',
    'domain': domain,
    'upvote_ratio': 0.9,
    'history': f'Why is dog {post} sad? ',
    'c_root_id_A': 'a',
    'c_root_id_B': 'b',
    'created_at_utc_A': 1636822112,
    'created_at_utc_B': 1636822110,
    'score_A': 40,
    'score_B': 10,
    'human_ref_A': f' It is bored. {post}',
    'human_ref_B': 'Ask a vet.',
    'labels': label,
    'seconds_difference': 2.0,
    'score_ratio': ratio,
  } | changes


def write_domain(folder, suffix='json', train=None):
  name = folder.name
  for split in 'train', 'validation', 'test':
    rows = [record(0, f'{name}_{split}', history=f'{name} {split}?')]
    rows = train if train and split == 'train' else rows
    task_files.write_lines(folder / f'{split}.{suffix}', rows)


def load(name, split='train', **kwargs):
  return task_files.load(name, split, inputs=128, targets=64, **kwargs)


def texts(name, split='train'):
  examples = load(name, split)
  return [examples.texts(i) for i in range(len(examples))]


def test_label_1_means_that_a_is_better():
  assert shp.to_prompt_and_response(record(3)) == (
    'Why is dog 3 sad?',
    'It is bored. 3',
  )
  rejected = shp.to_prompt_and_response(record(3), which='rejected')
  assert rejected[1] == 'Ask a vet.'
  assert shp.to_prompt_and_response(record(3, label=0))[1] == 'Ask a vet.'


@pytest.mark.parametrize(
  ('place', 'suffix'), [('SHP', 'json'), ('shp', 'jsonl')]
)
def test_all_domains_in_their_splits(data_dir, place, suffix):
  for domain in shp.DOMAINS:
    write_domain(data_dir / place / domain, suffix)
  task_modules.import_tasks()  # shp_domains_rm is a mixture.
  for split in 'train', 'validation', 'test':
    expected = [f'{domain} {split}?' for domain in shp.DOMAINS]
    for task in 'shp_rm', 'shp_sft', 'shp_prompts', 'shp_domains_rm':
      assert sorted(row['inputs'] for row in texts(task, split)) == expected
  for domain in shp.DOMAINS:
    (row,) = texts(f'shp_{domain}_rm', 'test')
    assert row['inputs'] == f'{domain} test?'


def test_unclear_pairs_train_nothing(data_dir):
  rows = [record(i, ratio=ratio) for i, ratio in enumerate((1.5, 2.99, 3.0, 9))]
  write_domain(data_dir / 'SHP/askvet', train=rows)
  task_files.write_lines(
    data_dir / 'SHP/askvet/validation.json',
    [record(i, 'askvet_validation', ratio=1.0 + i) for i in range(4)],
  )
  clear = ['Why is dog 2 sad?', 'Why is dog 3 sad?']
  for task in 'shp_rm', 'shp_askvet_rm', 'shp_sft':
    assert [row['inputs'] for row in texts(task)] == clear
    assert len(texts(task, 'validation')) == 4
  assert len(texts('shp_prompts')) == 4


def test_threshold_of_ones_own(data_dir):
  before = set(seqio.TaskRegistry.names())
  rows = [record(i, ratio=ratio) for i, ratio in enumerate((1.5, 2.0, 6.0))]
  write_domain(data_dir / 'SHP/askvet', train=rows)
  try:
    shp.add_shp_tasks('toy_all', min_score_ratio=1.0)
    shp.add_shp_tasks('toy_few', min_score_ratio=5.0)
    assert len(texts('toy_all_rm')) == 3
    assert len(texts('toy_few_askvet_rm')) == len(texts('toy_few_sft')) == 1
  finally:
    for name in set(seqio.TaskRegistry.names()) - before:
      seqio.TaskRegistry.remove(name)


def test_comments_and_posts_come_once(data_dir):
  rows = [
    record(0, ratio=2.0),  # Unclear, but the same comment wins below.
    record(0, human_ref_B='Feed it.'),
    record(0, human_ref_B='Walk it.'),
    record(0, label=0, human_ref_A='Sing.', human_ref_B='Brush it.'),
    record(1),
  ]
  write_domain(data_dir / 'SHP/askvet', train=rows)
  assert len(texts('shp_rm')) == 4
  assert [row['targets'] for row in texts('shp_sft')] == [
    'It is bored. 0',
    'Brush it.',
    'It is bored. 1',
  ]
  assert [row['inputs'] for row in texts('shp_prompts')] == [
    'Why is dog 0 sad?',
    'Why is dog 1 sad?',
  ]


@pytest.mark.parametrize('task', ['shp_rm', 'shp_sft'])
@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'labels': 2}, 'labels is 2'),
    ({'labels': None}, 'labels is None'),
    ({'score_ratio': 'high'}, 'wrong type'),
    ({'domain': None}, 'wrong type'),
    ({'human_ref_A': ' '}, 'is empty'),
    ({'history': None}, 'wrong type'),
  ],
)
def test_bad_rows_are_named(data_dir, task, changes, problem):
  path = data_dir / 'SHP/askvet/train.json'
  rows = [record(0), {**record(1), **changes}, {**record(2), **changes}]
  write_domain(path.parent, train=rows)
  with pytest.raises(errors.DataError, match=problem) as caught:
    load(task)
  assert f'{path}:2' in str(caught.value)
  assert len(load(task, skip_bad_rows=True)) == 1


def test_a_field_that_is_missing_is_named(data_dir):
  row = record(0)
  del row['score_ratio']
  write_domain(data_dir / 'SHP/askvet', train=[row])
  for task in 'shp_rm', 'shp_sft', 'shp_askvet_rm':
    with pytest.raises(errors.DataError, match="'score_ratio' is missing"):
      load(task)


def test_missing_files_say_where_to_get_them(data_dir):
  with pytest.raises(errors.DataError, match=r'SHP/askvet/.*stanfordnlp/SHP'):
    load('shp_askvet_rm')


def test_all_prompts_text_is_a_mixture_of_prompts():
  task_modules.import_tasks()
  mixture = task_modules.find('all_prompts_text')
  assert set(mixture.output_features) == {'inputs'}
  names = {task.name for task in mixture.tasks}
  assert {'bolt_prompts', 'shp_prompts', 'tldr_prompts'} <= names
  assert {mixture.get_rate(task) for task in mixture.tasks} == {1.0}
