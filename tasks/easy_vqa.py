"""Easy-VQA: questions about drawings of one coloured shape, 64 by 64 pixels.

Source: https://github.com/vzhou842/easy-VQA (Zhou 2019), MIT licence; 38,575
questions about 4,000 images to train on and 9,673 about 1,000 to test on.

Files, under PERLHF_DATA_DIR directly, in `easy-vqa/` or as the repository has
them in `easy-VQA/easy_vqa/data/`: `train/` and `test/`, each with
`questions.json`, an array of [question, answer, image id], and `images/N.png`.

Tasks: easy_vqa_sft (the right answers), easy_vqa_sft_noisy, easy_vqa_rm
(pointwise), easy_vqa_prompts (with the answer as a reference;
`tasks.vqa.soft_accuracy` judges it as right or wrong).

Splits: a hash of the image takes 5% of the images of `train/` for validation,
the rest is train; `test/` is test.

A wrong answer has the same type as the right one (yes or no, one of eight
colours, one of three shapes). It is drawn uniformly from the others by a hash
of SEED, the image and the question. easy_vqa_rm judges each question twice: the
right answer has label 1 and a wrong one label 0. easy_vqa_sft_noisy answers
each question once, in all splits: with the right answer in 60% of cases, also
drawn by such a hash, else with the wrong answer. So a policy tuned on it can
improve by rewards.
"""

from collections.abc import Iterator, Mapping
import os
from typing import Any

from perlhf_jax.data import json_documents
from perlhf_jax.data import json_rows
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from tasks import seeded_draws
from tasks import vqa

SEED = 0
# Share of right answers among the demonstrations of easy_vqa_sft_noisy.
NOISY_SHARE = 0.6
ANSWER_TYPES = (
  ('yes', 'no'),
  ('black', 'blue', 'brown', 'gray', 'green', 'red', 'teal', 'yellow'),
  ('circle', 'rectangle', 'triangle'),
)
HOMEPAGE = 'https://github.com/vzhou842/easy-VQA'

_ITEM = (str, str, int)


def read(path: str) -> Iterator[json_rows.Row]:
  """Yields the rows of a `questions.json`.

  A record has `question`, `answer` and `image`, the path of the image.

  Raises:
    DataError: the file cannot be read or holds no JSON array.
  """
  for index, item in enumerate(json_documents.load(path, list)):
    origin = f'{path}#{index}'
    if not isinstance(item, list) or tuple(map(type, item)) != _ITEM:
      problem = f'{item!r} is not [question, answer, image id]'
      yield json_rows.Row(origin, {}, problem)
      continue
    question, answer, image_id = item
    image = os.path.join(os.path.dirname(path), 'images', f'{image_id}.png')
    record = {'question': question, 'answer': answer, 'image': image}
    yield json_rows.Row(origin, record)


def to_prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
  """Returns question and answer of a record of `read`."""
  return record['question'].strip(), record['answer'].strip()


def wrong_answer(record: Mapping[str, Any]) -> str:
  """Returns the wrong answer to a question, of the right answer's type.

  Raises:
    ValueError: the right answer has no known type.
  """
  _, right = to_prompt_and_response(record)
  for answers in ANSWER_TYPES:
    if right in answers:
      others = [answer for answer in answers if answer != right]
      return seeded_draws.draw(f'{SEED}/wrong/{_key(record)}', others)
  raise ValueError(f'{right!r} is not yes, no, a colour or a shape of easy-VQA')


def parse_sft(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the right answer as a demonstration."""
  _, response = to_prompt_and_response(record)
  return {**_shared(record), 'targets': response}


def parse_noisy(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a demonstration that is right with probability NOISY_SHARE."""
  verdict = sources.split_by_hash(
    f'{SEED}/noisy/{_key(record)}',
    {'right': NOISY_SHARE, 'wrong': 1 - NOISY_SHARE},
  )
  _, right = to_prompt_and_response(record)
  response = right if verdict == 'right' else wrong_answer(record)
  return {**_shared(record), 'targets': response}


def parse_judged(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the right answer and a wrong one."""
  _, right = to_prompt_and_response(record)
  return vqa.judge_both(right, wrong_answer(record), **_shared(record))


def parse_prompt(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the question, with its answer as the reference."""
  _, answer = to_prompt_and_response(record)
  return {**_shared(record), 'references': [answer]}


def _image_name(record: Mapping[str, Any]) -> str:
  """Returns the path of the image relative to the data set's folder."""
  folder, name = os.path.split(record['image'])
  return f'{os.path.basename(os.path.dirname(folder))}/{name}'


def _key(record: Mapping[str, Any]) -> str:
  return f'{_image_name(record)}/{to_prompt_and_response(record)[0]}'


def _shared(record: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'inputs': to_prompt_and_response(record)[0],
    'images': [record['image']],
    sources.SPLIT_KEY: _image_name(record),
  }


def _files(folder: str) -> tuple[str, ...]:
  places = ('easy-vqa/', 'easy-VQA/easy_vqa/data/', '')
  return tuple(f'{place}{folder}/questions.json' for place in places)


for _name, _kind, _parse in (
  ('sft', 'sft', parse_sft),
  ('sft_noisy', 'sft', parse_noisy),
  ('rm', 'pointwise', parse_judged),
  ('prompts', 'prompts', parse_prompt),
):
  preference_tasks.add_preference_task(
    f'easy_vqa_{_name}',
    _kind,
    _parse,
    (
      (
        sources.FileGroup(_files('train'), {'train': 0.95, 'validation': 0.05}),
        sources.FileGroup(_files('test'), {'test': 1.0}),
      ),
    ),
    info=sources.DatasetInfo(
      description='easy-VQA',
      homepage=HOMEPAGE,
      licence='MIT',
      files='[easy-vqa/]{train,test}/questions.json and images/N.png',
    ),
    read=read,
    images=True,
    references=_kind == 'prompts',
  )
