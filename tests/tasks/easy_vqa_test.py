import collections
import json
import pathlib

import pytest
import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import sources
from tasks import easy_vqa

FIXTURE = pathlib.Path(__file__).parent / 'fixtures/easy_vqa/easy-vqa'
TYPES = {
  answer: answers for answers in easy_vqa.ANSWER_TYPES for answer in answers
}


def questions(images):
  """Five questions an image: one of each type and two more of yes or no."""
  result = []
  for image in range(images):
    _, colors, shapes = easy_vqa.ANSWER_TYPES
    result += [
      ['what color is the shape?', colors[image % 8], image],
      ['what shape is present?', shapes[image % 3], image],
      ['is there a circle?', 'yes' if image % 3 == 0 else 'no', image],
      ['is there a red shape?', 'yes' if image % 8 == 5 else 'no', image],
      ['is no triangle present?', 'no' if image % 3 == 2 else 'yes', image],
    ]
  return result


def write(folder, train, test):
  for name, items in (('train', train), ('test', test)):
    path = folder / name / 'questions.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(items))


def rows(task, split):
  return list(seqio.TaskRegistry.get(task).source.rows(split))


@pytest.mark.parametrize('place', ['easy-vqa', 'easy-VQA/easy_vqa/data', '.'])
def test_images_are_in_one_split_each(data_dir, place):
  write(data_dir / place, questions(100), questions(3))
  images = {
    split: {row['images'][0] for row in rows('easy_vqa_sft', split)}
    for split in ('train', 'validation', 'test')
  }
  assert not images['train'] & images['validation']
  assert len(images['train'] | images['validation']) == 100
  assert 0 < len(images['validation']) < 15
  folder = data_dir / place / 'test/images'
  assert images['test'] == {str(folder / f'{index}.png') for index in range(3)}


def test_where_the_files_lie_changes_nothing(tmp_path, monkeypatch):
  found = []
  for place in ('a/easy-vqa', 'b'):
    write(tmp_path / place, questions(60), questions(3))
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path / place[0]))
    found.append(
      [
        (row['inputs'], row['targets'])
        for task in ('easy_vqa_rm', 'easy_vqa_sft_noisy')
        for row in rows(task, 'validation')
      ]
    )
  assert found[0] == found[1] and found[0]


def test_every_question_is_judged_rightly_and_wrongly(data_dir):
  write(data_dir, questions(1), questions(200))
  judged = rows('easy_vqa_rm', 'test')
  assert [row['label'] for row in judged] == [1, 0] * 1000
  counts = collections.Counter()
  for right, wrong in zip(judged[::2], judged[1::2], strict=True):
    assert right['inputs'] == wrong['inputs']
    assert right['images'] == wrong['images']
    assert wrong['targets'] != right['targets']
    assert wrong['targets'] in TYPES[right['targets']]
    counts[wrong['targets']] += 1
  # 200 questions on colours and on shapes, each other answer equally likely.
  assert all(10 <= counts[color] <= 45 for color in easy_vqa.ANSWER_TYPES[1])
  assert all(45 <= counts[shape] <= 90 for shape in easy_vqa.ANSWER_TYPES[2])
  assert rows('easy_vqa_rm', 'test') == judged


def test_noisy_demonstrations_are_right_three_times_of_five(data_dir):
  write(data_dir, questions(400), questions(3))
  noisy = rows('easy_vqa_sft_noisy', 'train')
  right = rows('easy_vqa_sft', 'train')
  assert [row['inputs'] for row in noisy] == [row['inputs'] for row in right]
  same = [
    a['targets'] == b['targets'] for a, b in zip(noisy, right, strict=True)
  ]
  assert 0.56 < sum(same) / len(same) < 0.64
  assert all(
    row['targets'] in TYPES[other['targets']]
    for row, other in zip(noisy, right, strict=True)
  )


def test_prompts_have_the_answer_as_reference(data_dir):
  write(data_dir, questions(1), [[' what is it? ', ' circle ', 0]])
  (row,) = rows('easy_vqa_prompts', 'test')
  assert (row['inputs'], row['references']) == ('what is it?', ['circle'])


@pytest.mark.parametrize(
  'item',
  [['what?', 'yes'], ['what?', 'yes', '0'], ['what?', None, 0], 'what?', {}],
)
def test_bad_items_are_named(data_dir, item):
  write(data_dir, questions(1), [*questions(1), item])
  row = rows('easy_vqa_rm', 'test')[-1]
  assert row['origin'].endswith('test/questions.json#5')
  assert 'is not [question, answer, image id]' in row['problem']


def test_an_answer_of_no_type_cannot_be_judged(data_dir):
  write(data_dir, questions(1), [['what is it?', 'pentagon', 0]])
  assert 'pentagon' in rows('easy_vqa_rm', 'test')[0]['problem']
  assert not rows('easy_vqa_sft', 'test')[0]['problem']


def test_missing_files_say_where_to_get_them(data_dir):
  with pytest.raises(errors.DataError, match=r'easy-vqa/.*vzhou842.*MIT'):
    rows('easy_vqa_rm', 'train')


def test_the_dataset_yields_paths_of_images(monkeypatch):
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(FIXTURE))
  dataset = seqio.TaskRegistry.get('easy_vqa_prompts').get_dataset(
    None, split='test', shuffle=False, trim_output_features=False
  )
  first, _ = dataset.as_numpy_iterator()
  assert first['references'].tolist() == [b'yes']
  (path,) = first['images']
  image = tf.io.decode_png(tf.io.read_file(path))
  assert image.shape == (64, 64, 3)
