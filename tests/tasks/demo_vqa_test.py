import itertools

import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import task_modules
from perlhf_jax.data import vocabularies
from perlhf_jax.rl import reward_functions
from tasks import demo_vqa
from tasks import demo_vqa_world as world
from tasks import demo_world


def load(name, split='validation'):
  config = input_pipeline.DatasetConfig(
    name, {'inputs': 28, 'targets': 13, 'images': 1}, split=split
  )
  return input_pipeline.load_examples(
    config,
    vocabularies.byte_vocabulary(),
    world.IMAGE_SIZE,
  )


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    ('demo_vqa_sft', 'sft'),
    ('demo_vqa_rm', 'pointwise'),
    ('demo_vqa_prompts', 'prompts'),
    ('demo_vqa_gold', 'sft'),
  ],
)
def test_tasks_load_whole_and_nothing_is_cut(name, kind):
  examples = load(name)
  assert examples.kind.name == kind
  assert len(examples) == demo_vqa.NUM_VALIDATION
  assert not examples.num_truncated
  assert not examples.num_skipped
  (batch,) = itertools.islice(input_pipeline.eval_batches(examples, 4), 1)
  assert batch['images'].shape == (4, 1, 32, 32, 3)
  assert batch['images'].std() > 10
  assert batch['image_mask'].all()


def test_built_in():
  task_modules.import_tasks()
  assert task_modules.find('demo_vqa_rm').name == 'demo_vqa_rm'


def test_rows_do_not_depend_on_how_many_are_made():
  for make in (demo_vqa.make_sft, demo_vqa.make_judged):
    rows = itertools.islice(make('train'), 5)
    again = itertools.islice(make('train'), 3)
    assert list(again) == list(rows)[:3]


def questions(stream, split, count):
  """What the rows of a task ask, once more."""
  for index in range(count):
    rng = demo_world.example_rng(demo_vqa.SEED, stream, split, index)
    yield world.sample_question(rng, split)[1]


def test_labels_say_whether_an_answer_is_right():
  asked = questions('vqa_rm', 'train', 600)
  labels = []
  for question, row in zip(asked, demo_vqa.make_judged('train'), strict=False):
    assert row['inputs'] == question.text
    assert row['label'] == (row['targets'] == question.answer)
    assert row['targets'] in world.ANSWERS[question.kind]
    labels.append(row['label'])
  assert np.mean(labels) == pytest.approx(0.5, abs=0.07)


def test_demonstrations_are_mediocre():
  asked = questions('vqa_sft', 'train', 600)
  scores = []
  for question, row in zip(asked, demo_vqa.make_sft('train'), strict=False):
    assert row['inputs'] == question.text
    scores.append(demo_vqa.gold_score([question.answer], row['targets']))
  assert np.mean(scores) == pytest.approx(100 * world.RIGHT_RATE, abs=7)


def test_gold_has_the_right_answers_to_the_prompts():
  gold = itertools.islice(demo_vqa.make_gold('test'), 30)
  prompts = itertools.islice(demo_vqa.make_prompts('test'), 30)
  for right, prompt in zip(gold, prompts, strict=True):
    assert right['inputs'] == prompt['inputs']
    assert right['images'] == prompt['images']
    assert prompt['references'] == [right['targets']]
    for row in (right, prompt):
      expected = right['inputs'], right['targets']
      assert demo_vqa.to_prompt_and_response(row) == expected


def test_no_picture_is_in_two_splits():
  seen = {}
  for split in world.SPLITS:
    for row in itertools.islice(demo_vqa.make_prompts(split), 300):
      (picture,) = row['images']
      assert seen.setdefault(picture, split) == split


def test_the_judge_reads_references():
  scores = reward_functions.call(
    demo_vqa.gold_scores,
    ['color?', 'where?', 'how many?'],
    ['red', 'top', ' 2'],
    [['blue', 'red'], ['top left'], ['2']],
  )
  np.testing.assert_array_equal(scores, [100, 0, 100])
  with pytest.raises(errors.DataError, match='takes references'):
    reward_functions.call(demo_vqa.gold_scores, ['color?'], ['red'], [None])
