import gzip
import json

import pytest
import task_files

from perlhf_jax.core import errors
from tasks import hh

PROMPT = '\n\nHuman: why is {} so?\n\nAssistant:'


def records(count, start=0):
  return [
    {
      'chosen': PROMPT.format(i) + f' Because of {i}.',
      'rejected': PROMPT.format(i) + ' No idea.',
    }
    for i in range(start, start + count)
  ]


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = '\n'.join(json.dumps(row) for row in rows) + '\n'
  if path.suffix == '.gz':
    path.write_bytes(gzip.compress(text.encode()))
  else:
    path.write_text(text)


def load(name, split, **kwargs):
  return task_files.load(name, split, inputs=64, targets=32, **kwargs)


@pytest.mark.parametrize('place', ['hh-rlhf/harmless-base', 'harmless-base'])
@pytest.mark.parametrize('suffix', ['jsonl', 'jsonl.gz'])
def test_train_and_test_files(data_dir, place, suffix):
  write(data_dir / place / f'train.{suffix}', records(60))
  write(data_dir / place / f'test.{suffix}', records(7, start=60))
  sizes = {
    split: len(load('hh_harmless_rm', split))
    for split in ('train', 'validation', 'test')
  }
  assert sizes['test'] == 7
  assert sizes['train'] + sizes['validation'] == 60
  assert sizes['train'] > sizes['validation'] > 0


def test_a_lone_test_file_is_split_by_prompt(data_dir):
  write(data_dir / 'helpful-base/test.jsonl', records(100))
  splits = {
    split: load('hh_helpful_rm', split)
    for split in ('train', 'validation', 'test')
  }
  assert sum(len(examples) for examples in splits.values()) == 100
  assert len(splits['train']) > 65
  prompts = [
    {examples.texts(i)['inputs'] for i in range(len(examples))}
    for examples in splits.values()
  ]
  assert not prompts[0] & prompts[1] and not prompts[1] & prompts[2]


def test_tasks_agree_with_to_prompt_and_response(data_dir):
  rows = records(3)
  write(data_dir / 'harmless-base/train.jsonl', rows)
  write(data_dir / 'harmless-base/test.jsonl', rows)
  pairs = load('hh_harmless_rm', 'test')
  demonstrations = load('hh_harmless_sft', 'test')
  prompts = load('hh_harmless_prompts', 'test')
  for i, row in enumerate(rows):
    prompt, chosen = hh.to_prompt_and_response(row)
    _, rejected = hh.to_prompt_and_response(row, which='rejected')
    assert pairs.texts(i) == {
      'inputs': prompt,
      'chosen': chosen,
      'rejected': rejected,
      'margin': 0.0,
    }
    assert demonstrations.texts(i) == {'inputs': prompt, 'targets': chosen}
    assert prompts.texts(i) == {'inputs': prompt}
  assert prompt == PROMPT.format(2).strip()
  assert (chosen, rejected) == ('Because of 2.', 'No idea.')


@pytest.mark.parametrize(
  ('row', 'problem'),
  [
    ({'chosen': PROMPT + ' a'}, "'rejected' is missing"),
    ({'chosen': PROMPT, 'rejected': PROMPT + ' a'}, 'chosen response.*empty'),
    ({'chosen': PROMPT + 'a', 'rejected': PROMPT + ' a'}, 'identical'),
    ({'chosen': 'hello', 'rejected': 'hi'}, 'no turn that starts'),
    ({'chosen': None, 'rejected': 'hi'}, 'wrong type'),
  ],
)
def test_bad_rows_are_named_or_skipped(data_dir, row, problem):
  path = data_dir / 'harmless-base' / 'test.jsonl'
  write(path, [row])
  write(data_dir / 'harmless-base' / 'train.jsonl', [*records(3), row])
  with pytest.raises(errors.DataError, match=problem) as caught:
    load('hh_harmless_rm', 'test')
  assert f'{path}:1' in str(caught.value)
  examples = load('hh_harmless_rm', 'train', skip_bad_rows=True)
  assert len(examples) >= 2


def test_missing_files_say_where_to_get_them(data_dir):
  with pytest.raises(
    errors.DataError, match=r'harmless-base/.*anthropics/hh-rlhf.*MIT'
  ):
    load('hh_harmless_rm', 'train')
