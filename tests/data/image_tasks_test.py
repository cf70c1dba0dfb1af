"""Tasks with images, from registration to batches."""

import itertools
import json

import numpy as np
import pytest
import seqio
import tiny_pali

from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from perlhf_jax.data import vocabularies

COUNT = 10


def parse(record):
  features = {'inputs': record['question'], 'targets': record['answer']}
  return features | {'images': [i for i in record.get('image', [])]}


@pytest.fixture(name='folder')
def _folder(tmp_path, monkeypatch):
  """Ten questions, two about each of five images."""
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
  for number in range(5):
    (tmp_path / f'{number}.png').write_bytes(tiny_pali.png(number))
  write(tmp_path, [row(tmp_path, n) for n in range(COUNT)])
  return tmp_path


def row(folder, number):
  image = str(folder / f'{number // 2}.png')
  return {
    'question': f'question {number}',
    'answer': f'{number}',
    'image': [image],
  }


def write(folder, rows):
  lines = [json.dumps(each) for each in rows]
  (folder / 'rows.jsonl').write_text('\n'.join(lines) + '\n')


@pytest.fixture(name='task')
def _task():
  name = 'image_task_of_a_test'
  preference_tasks.add_preference_task(
    name, 'sft', parse, files={'train': 'rows.jsonl'}, images=True
  )
  yield name
  seqio.TaskRegistry.remove(name)


def load(task, image_size=6, lengths=None, **kwargs):
  config = input_pipeline.DatasetConfig(
    mixture_or_task_name=task,
    task_feature_lengths={'inputs': 16, 'targets': 4, **(lengths or {})},
    batch_size=4,
    **kwargs,
  )
  return input_pipeline.load_examples(
    config, vocabularies.byte_vocabulary(), image_size
  )


def number_of(batch, row):
  """Which question stands in a row of a batch."""
  tokens = batch['encoder_input_tokens'][row]
  text = bytes(int(t) - 3 for t in tokens if t > 2).decode()
  return int(text.split()[1])


def test_the_feature_is_continuous(folder, task):
  feature = seqio.TaskRegistry.get(task).output_features['images']
  assert isinstance(feature, seqio.ContinuousFeature)
  assert feature.rank == 1


def test_every_row_has_its_image(folder, task):
  examples = load(task)
  assert len(examples) == COUNT
  assert len(examples.images.images) == 5
  assert examples.images_of(3) == (str(folder / '1.png'),)
  expected = [tiny_pali.pixels_of(tiny_pali.png(n)) for n in range(5)]
  seen = set()
  for batch in itertools.islice(input_pipeline.train_iterator(examples), 5):
    assert batch['images'].shape == (4, 1, 6, 6, 3)
    assert batch['image_mask'].all()
    for place in range(4):
      number = number_of(batch, place)
      seen.add(number)
      np.testing.assert_array_equal(
        batch['images'][place, 0], expected[number // 2]
      )
  assert seen == set(range(COUNT))


def test_a_step_is_the_same_wherever_the_run_begins(folder, task):
  examples = load(task)
  whole = list(itertools.islice(input_pipeline.train_iterator(examples), 6))
  later = list(itertools.islice(input_pipeline.train_iterator(examples, 4), 2))
  mine = next(input_pipeline.train_iterator(examples, 5, np.array([2, 0])))
  for name, array in later[1].items():
    np.testing.assert_array_equal(array, whole[5][name])
    np.testing.assert_array_equal(mine[name], array[[2, 0]])


def test_evaluation_batches_are_padded(folder, task):
  batches = list(input_pipeline.eval_batches(load(task), 4))
  assert len(batches) == 3
  last = batches[-1]
  assert last['example_mask'].tolist() == [True, True, False, False]
  assert last['image_mask'][:, 0].tolist() == [True, True, False, False]
  assert not last['images'][2:].any()


def test_prompts_keep_their_images(folder, task):
  examples = load(task)
  prompts = examples.prompts()
  batch = next(input_pipeline.eval_batches(prompts, 4))
  assert {'prompt_tokens', 'images', 'image_mask'} < set(batch)
  assert prompts.images_of(2) == examples.images_of(2)
  assert examples.references_of(2) == ['2']
  assert prompts.references_of(2) is None


def test_feature_lengths_say_how_many_images(folder, task):
  lengths = {'inputs': 16, 'targets': 4}
  assert load(task).feature_lengths(lengths) == {**lengths, 'images': 1}
  more = load(task, lengths={'images': 3})
  assert more.feature_lengths(lengths)['images'] == 3
  batch = next(input_pipeline.train_iterator(more))
  assert batch['images'].shape == (4, 3, 6, 6, 3)
  assert batch['image_mask'].sum() == 4


def test_a_text_model_refuses_a_task_with_images(folder, task):
  with pytest.raises(errors.ConfigError, match=r'only text.*PaLI'):
    load(task, image_size=None)


def test_an_absent_image_is_a_bad_row(folder, task):
  rows = [row(folder, n) for n in range(4)]
  rows[2] = {**rows[2], 'image': []}
  write(folder, rows)
  with pytest.raises(errors.DataError, match=r'rows\.jsonl:3: .* no image'):
    load(task)
  assert len(load(task, skip_bad_rows=True)) == 3


@pytest.mark.parametrize(
  ('content', 'wanted'),
  [(None, 'does not exist'), (b'no image', 'cannot be decoded')],
)
def test_an_unusable_image_is_named_with_its_record(
  folder, task, content, wanted
):
  (folder / '1.png').unlink()
  if content is not None:
    (folder / '1.png').write_bytes(content)
  with pytest.raises(errors.DataError, match=rf'jsonl:3: .*1\.png {wanted}'):
    load(task)
  examples = load(task, skip_bad_rows=True)
  assert len(examples) == COUNT - 2
  assert examples.num_skipped == 2
  left = [examples.texts(i)['targets'] for i in range(len(examples))]
  assert left == ['0', '1', '4', '5', '6', '7', '8', '9']
  assert examples.images_of(2) == (str(folder / '2.png'),)


def test_more_images_than_there_is_room_for(folder, task):
  many = row(folder, 0)
  many['image'] = many['image'] * 3
  write(folder, [row(folder, 1), many])
  with pytest.raises(errors.DataError, match=r'jsonl:2: .* 3 images.*than 1'):
    load(task)
  assert len(load(task, lengths={'images': 3})) == 2


def test_a_list_that_is_none(folder, task):
  write(folder, [row(folder, 1), {**row(folder, 2), 'image': [7]}])
  with pytest.raises(errors.DataError, match=r'jsonl:2: images holds 7'):
    load(task)


@pytest.mark.parametrize('count', [0, 1.5, '2'])
def test_impossible_counts(folder, task, count):
  with pytest.raises(errors.ConfigError, match='images'):
    load(task, lengths={'images': count})


def test_images_of_a_model_and_a_task_without_any():
  lengths = {'inputs': 32, 'targets': 17, 'images': 1}
  with pytest.raises(errors.ConfigError, match='Leave it out'):
    load('demo_sft', image_size=None, lengths=lengths, max_examples=4)
  examples = load('demo_sft', lengths=lengths, max_examples=4)
  assert examples.images is None
  assert 'images' not in next(input_pipeline.eval_batches(examples))


def test_references_are_of_prompts_alone():
  with pytest.raises(errors.ConfigError, match='only prompts do'):
    preference_tasks.add_preference_task(
      'no_such_task', 'sft', parse, files='x.jsonl', references=True
    )


def test_several_examples_of_a_record(folder):
  def several(record):
    return [
      {'inputs': record['question'], 'split_key': 'k', 'references': [answer]}
      for answer in (record['answer'], 'other')
    ]

  name = 'several_of_a_test'
  preference_tasks.add_preference_task(
    name, 'prompts', several, files={'train': 'rows.jsonl'}, references=True
  )
  try:
    examples = load(name, image_size=None)
  finally:
    seqio.TaskRegistry.remove(name)
  assert len(examples) == 2 * COUNT
  assert examples.references_of(3) == ['other']
  assert examples.references_of(4) == ['2']


def test_what_is_hashed_for_the_split(folder):
  def keyed(record):
    return {'inputs': record['question'], 'split_key': record['image'][0]}

  name = 'keyed_of_a_test'
  preference_tasks.add_preference_task(
    name,
    'prompts',
    keyed,
    files='rows.jsonl',
    splits={'train': 0.5, 'validation': 0.5},
  )
  try:
    numbers = {
      split: {
        int(text['inputs'].split()[1]) // 2
        for examples in [load(name, image_size=None, split=split)]
        for text in map(examples.texts, range(len(examples)))
      }
      for split in ('train', 'validation')
    }
  finally:
    seqio.TaskRegistry.remove(name)
  assert numbers['train'] | numbers['validation'] == set(range(5))
  assert not numbers['train'] & numbers['validation']
