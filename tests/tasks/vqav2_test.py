import json

import pytest
import seqio

from perlhf_jax.core import errors
from tasks import vqa
from tasks import vqav2

ANNOTATIONS = 'v2_mscoco_{}2014_annotations.json'
QUESTIONS = 'v2_OpenEnded_mscoco_{}2014_questions.json'
COLORS = ('red', 'blue', 'green')


def question(number, image, text='What color is it?'):
  return {'question_id': number, 'image_id': image, 'question': text}


def annotation(number, image, answer, others=(), kind='what color'):
  answers = [answer] * (10 - len(others)) + list(others)
  return {
    'question_id': number,
    'image_id': image,
    'question_type': kind,
    'answer_type': 'yes/no' if answer in ('yes', 'no') else 'other',
    'multiple_choice_answer': answer,
    'answers': [
      {'answer': text, 'answer_confidence': 'yes', 'answer_id': index + 1}
      for index, text in enumerate(answers)
    ],
  }


def write(folder, part, questions, annotations):
  folder.mkdir(parents=True, exist_ok=True)
  for name, field, entries in (
    (QUESTIONS, 'questions', questions),
    (ANNOTATIONS, 'annotations', annotations),
  ):
    path = folder / name.format(part)
    path.write_text(json.dumps({'info': {}, field: entries}))


def write_many(folder, part, images=60):
  """Three questions an image, of two types."""
  questions, annotations = [], []
  for image in range(1, images + 1):
    for index in range(3):
      number = image * 1000 + index
      questions.append(question(number, image))
      answer = (
        COLORS[(image + index) % 3] if index else ('yes', 'no')[image % 2]
      )
      kind = 'what color' if index else 'is it'
      annotations.append(annotation(number, image, answer, kind=kind))
  write(folder, part, questions, annotations)


def rows(task, split):
  return list(seqio.TaskRegistry.get(task).source.rows(split))


@pytest.mark.parametrize('place', ['vqav2', '.'])
def test_images_are_in_one_split_each(data_dir, place):
  folder = data_dir / place
  write_many(folder, 'train')
  write_many(folder, 'val', images=4)
  images = {
    split: {row['images'][0] for row in rows('vqav2_sft', split)}
    for split in ('train', 'validation', 'test')
  }
  assert not images['train'] & images['validation']
  assert len(images['train'] | images['validation']) == 60
  assert len(images['train']) > 45 and images['validation']
  assert images['test'] == {
    str(folder / f'val2014/COCO_val2014_{number:012d}.jpg')
    for number in range(1, 5)
  }


def test_tasks_agree_and_keep_the_order(data_dir):
  write_many(data_dir, 'train')
  write_many(data_dir, 'val', images=4)
  path = str(data_dir / ANNOTATIONS.format('val'))
  records = [row.record for row in vqav2.read(path)]
  expected = [vqav2.to_prompt_and_response(record) for record in records]
  demonstrations = rows('vqav2_sft', 'test')
  assert [(row['inputs'], row['targets']) for row in demonstrations] == expected
  judged = rows('vqav2_rm', 'test')
  assert [row['label'] for row in judged] == [1, 0] * len(records)
  assert [row['targets'] for row in judged[::2]] == [
    text for _, text in expected
  ]
  prompts = rows('vqav2_prompts', 'test')
  assert [row['references'] for row in prompts] == [
    [text] * 10 for _, text in expected
  ]
  origins = [f'{path}#{index}' for index in range(len(records))]
  assert [row['origin'] for row in prompts] == origins


def test_wrong_answers_are_of_the_same_type_and_given_by_nobody(data_dir):
  write_many(data_dir, 'train')
  write_many(data_dir, 'val', images=30)
  judged = rows('vqav2_rm', 'test')
  wrong_of = {}
  for right, wrong in zip(judged[::2], judged[1::2], strict=True):
    group = COLORS if right['targets'] in COLORS else ('yes', 'no')
    assert wrong['targets'] in group and wrong['targets'] != right['targets']
    assert wrong['images'] == right['images']
    wrong_of.setdefault(right['targets'], set()).add(wrong['targets'])
  # A hash of the question draws, not the right answer.
  assert wrong_of['red'] == {'blue', 'green'}
  assert rows('vqav2_rm', 'test') == judged


def test_what_one_person_said_is_not_wrong(data_dir):
  write_many(data_dir, 'train', images=2)
  questions = [question(number, 1) for number in range(3)]
  annotations = [
    annotation(0, 1, 'red', others=['Blue.']),
    annotation(1, 1, 'blue'),
    annotation(2, 1, 'green'),
  ]
  write(data_dir, 'val', questions, annotations)
  wrong = rows('vqav2_rm', 'test')[1]
  assert wrong['targets'] == 'green'
  (score,) = vqa.soft_accuracy(
    [''], [wrong['targets']], [rows('vqav2_prompts', 'test')[0]['references']]
  )
  assert score == 0


def test_other_types_are_drawn_from_where_the_own_has_nothing_wrong(data_dir):
  write_many(data_dir, 'train', images=2)
  questions = [question(number, 1) for number in range(3)]
  annotations = [
    annotation(0, 1, 'red'),
    annotation(1, 1, 'two', kind='how many'),
    annotation(2, 1, 'yes', kind='is it'),
  ]
  write(data_dir, 'val', questions, annotations)
  wrong = [row['targets'] for row in rows('vqav2_rm', 'test')[1::2]]
  # `other` has two answers, `yes/no` one.
  assert wrong[:2] == ['two', 'red'] and wrong[2] in ('red', 'two')


def test_both_halves_of_what_does_not_join_are_named(data_dir):
  write_many(data_dir, 'train', images=2)
  write(
    data_dir,
    'val',
    [question(1, 1), question(2, 1), question(3, 2)],
    [annotation(9, 1, 'red'), annotation(2, 1, 'red'), annotation(3, 1, 'red')],
  )
  found = {
    row['origin'].rpartition('/')[2]: row['problem']
    for row in rows('vqav2_prompts', 'test')
  }
  annotations, questions = ANNOTATIONS.format('val'), QUESTIONS.format('val')
  assert found.keys() == {
    f'{annotations}#0',
    f'{annotations}#1',
    f'{annotations}#2',
    f'{questions}#0',
  }
  assert 'the question 9 is not in' in found[f'{annotations}#0']
  assert found[f'{annotations}#1'] == ''
  assert 'about image 1, the question about' in found[f'{annotations}#2']
  assert 'no annotation' in found[f'{questions}#0']


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    ({'question_id': None}, 'no question_id'),
    ({'multiple_choice_answer': 7}, 'wrong type'),
    ({'answers': []}, 'no reference'),
    ({'answers': [{}]}, "'answer' is missing"),
  ],
)
def test_bad_annotations_are_named(data_dir, change, problem):
  write_many(data_dir, 'train', images=2)
  bad = {**annotation(1, 1, 'red'), **change}
  write(data_dir, 'val', [question(1, 1)], [bad])
  problems = [row['problem'] for row in rows('vqav2_prompts', 'test')]
  assert problem in problems[0]
  if 'multiple_choice_answer' in change:
    assert problem in rows('vqav2_rm', 'test')[0]['problem']


def test_missing_files_are_named(data_dir):
  with pytest.raises(errors.DataError, match=r'visualqa\.org'):
    rows('vqav2_sft', 'train')
  write_many(data_dir, 'train')
  write_many(data_dir, 'val')
  (data_dir / QUESTIONS.format('val')).unlink()
  with pytest.raises(errors.DataError, match=r'val2014_questions\.json, which'):
    rows('vqav2_sft', 'test')
  (data_dir / QUESTIONS.format('val')).write_text('{"annotations": []}')
  with pytest.raises(errors.DataError, match="no list 'questions'"):
    rows('vqav2_sft', 'test')


def test_a_file_of_another_name_is_refused(tmp_path):
  with pytest.raises(errors.DataError, match='not named like'):
    list(vqav2.read(str(tmp_path / 'annotations.json')))
