import itertools

import pytest
import task_files

from tasks import demo
from tasks import demo_world


def load(name, split='validation', **kwargs):
  return task_files.load(name, split, inputs=32, targets=24, **kwargs)


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    ('demo_sft', 'sft'),
    ('demo_rm', 'pairwise'),
    ('demo_rm_pointwise', 'pointwise'),
    ('demo_prompts', 'prompts'),
  ],
)
def test_tasks_load_whole_and_nothing_is_cut(name, kind):
  examples = load(name)
  assert examples.kind.name == kind
  assert len(examples) == demo.NUM_VALIDATION
  assert not examples.num_truncated
  prompt = examples.texts(0)['inputs']
  assert demo_world.split_of(demo_world.parse_prompt(prompt)) == 'validation'


def test_rows_do_not_depend_on_how_many_are_made():
  whole = list(itertools.islice(demo.make_pairs('train'), 5))
  rng = demo_world.example_rng(demo.SEED, 'rm', 'train', 4)
  prompt, chosen, rejected = demo_world.sample_pair(rng, 'train')
  assert whole[4] == {'inputs': prompt, 'chosen': chosen, 'rejected': rejected}


def test_prompt_and_response_of_a_record():
  (pair,) = itertools.islice(demo.make_pairs('test'), 1)
  prompt, response = demo.to_prompt_and_response(pair)
  assert demo.gold_score(prompt, response) > demo.gold_score(
    prompt, pair['rejected']
  )
  (row,) = itertools.islice(demo.make_sft('test'), 1)
  assert demo.to_prompt_and_response(row) == (row['inputs'], row['targets'])
