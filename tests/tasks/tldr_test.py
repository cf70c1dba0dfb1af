import pytest
import task_files

from perlhf_jax.core import errors
from perlhf_jax.data import task_modules
from tasks import tldr


def comparison(index, split='train', **changes):
  return {
    'info': {
      'id': f't3_{index}',
      'post': f'I lost {index} keys. \n\nWhere are they? ',
      'title': 'Keys',
      'subreddit': 'help',
    },
    'split': split,
    'summaries': [
      {'text': f' Lost {index} keys.', 'policy': 'ref', 'note': None},
      {'text': ' Keys.', 'policy': 'sup1', 'note': 'no'},
    ],
    'choice': index % 2,
    'worker': 'w',
    'batch': 'batch3',
    'extra': {'confidence': 5},
  } | changes


def post(index):
  return {
    'id': f't3_{index}',
    'subreddit': 'help',
    'title': 'Keys',
    'post': f'I lost {index} keys.',
    'summary': f' Lost {index}. ',
  }


def load(name, split='train', **kwargs):
  return task_files.load(name, split, inputs=256, targets=64, **kwargs)


def test_prompt_has_the_form_of_the_paper():
  prompt, chosen = tldr.to_prompt_and_response(comparison(3))
  assert prompt == (
    'SUBREDDIT: r/help\nTITLE: Keys\nPOST: I lost 3 keys. \n\nWhere are they?'
    '\nTL;DR:'
  )
  assert chosen == 'Keys.'
  _, rejected = tldr.to_prompt_and_response(comparison(3), which='rejected')
  assert rejected == 'Lost 3 keys.'
  _, chosen = tldr.to_prompt_and_response(comparison(4))
  assert chosen == 'Lost 4 keys.'
  assert tldr.render_prompt('hi') == 'POST: hi\nTL;DR:'


@pytest.mark.parametrize('place', ['summarize-from-feedback/', 'tldr/', ''])
@pytest.mark.parametrize('folder', ['', 'dataset/'])
def test_comparisons_go_where_they_say(data_dir, place, folder):
  where = data_dir / f'{place}{folder}comparisons'
  splits = ['train'] * 4 + ['valid1'] * 3 + ['valid2'] * 2
  rows = [comparison(i, split) for i, split in enumerate(splits)]
  task_files.write_lines(where / 'batch3.json', rows[:5])
  task_files.write_lines(where / 'batch22.json', rows[5:])
  expected = {'train': 'train', 'validation': 'valid1', 'test': 'valid2'}
  for split, upstream in expected.items():
    examples = load('tldr_rm', split)
    found = {examples.texts(i)['inputs'] for i in range(len(examples))}
    assert found == {
      tldr.to_prompt_and_response(row)[0]
      for row in rows
      if row['split'] == upstream
    }


@pytest.mark.parametrize('place', ['summarize-from-feedback/', 'tldr/', ''])
@pytest.mark.parametrize('folder', ['', 'datasets/'])
def test_posts_are_in_the_split_of_their_file(data_dir, place, folder):
  where = data_dir / f'{place}{folder}tldr_3_filtered'
  rows = {'train': [0, 1, 2], 'valid': [3, 4], 'test': [5]}
  for name, numbers in rows.items():
    task_files.write_lines(where / f'{name}.jsonl', [post(i) for i in numbers])
  for split, name in ('train', 'train'), ('validation', 'valid'):
    demonstrations, prompts = load('tldr_sft', split), load('tldr_prompts')
    assert len(demonstrations) == len(rows[name])
    for position, index in enumerate(rows[name]):
      prompt, response = tldr.to_prompt_and_response(post(index))
      assert demonstrations.texts(position) == {
        'inputs': prompt,
        'targets': response,
      }
    assert prompts.texts(1) == {
      'inputs': tldr.to_prompt_and_response(post(1))[0]
    }
  assert len(load('tldr_prompts', 'test')) == 1


def test_articles_are_left_out(data_dir):
  article = {'id': 'x', 'title': 'News', 'article': 'It rained.', 'post': None}
  rows = [comparison(0, info=article), comparison(1)]
  del rows[0]['info']['post']
  task_files.write_lines(data_dir / 'comparisons/batch0_cnndm.json', rows)
  assert len(load('tldr_rm')) == 1


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'choice': None}, 'choice is None'),
    ({'split': 'valid3'}, "split is 'valid3'"),
    ({'summaries': []}, 'there are 0 summaries, not 2'),
    ({'summaries': [{'text': 'a'}, {}]}, "'text' is missing"),
    ({'summaries': [{'text': 'a'}, {'text': ' a'}]}, 'identical'),
    ({'summaries': [{'text': 'a'}, {'text': ' '}]}, 'is empty'),
    ({'info': {'title': 'a', 'subreddit': 'b'}}, "'post' is missing"),
    ({'info': {'post': 1, 'title': 'a', 'subreddit': 'b'}}, 'wrong type'),
  ],
)
def test_bad_comparisons_are_named(data_dir, changes, problem):
  path = data_dir / 'comparisons/batch4.json'
  task_files.write_lines(path, [comparison(1), comparison(2, **changes)])
  with pytest.raises(errors.DataError, match=problem) as caught:
    load('tldr_rm')
  assert f'{path}:2' in str(caught.value)
  assert len(load('tldr_rm', skip_bad_rows=True)) == 1


def test_missing_files_say_where_to_get_them(data_dir):
  with pytest.raises(errors.DataError, match=r'comparisons/.*modified MIT'):
    load('tldr_rm')
  with pytest.raises(errors.DataError, match=r'tldr_3_filtered/.*CC BY 4\.0'):
    load('tldr_sft')


def test_its_module_can_be_cached():
  task = task_modules.find('tldr_rm')
  assert task.source.module == 'tasks.tldr'
