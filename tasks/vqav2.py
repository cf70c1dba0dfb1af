"""VQAv2: open questions about photographs, each answered by ten people.

Source: https://visualqa.org/download.html (Goyal et al. 2017). Annotations are
under CC BY 4.0; the photographs are COCO's, under the terms of Flickr.

Files, under PERLHF_DATA_DIR directly or in `vqav2/`, all in one folder, for x
in train, val:
  v2_OpenEnded_mscoco_x2014_questions.json
  v2_mscoco_x2014_annotations.json
  x2014/COCO_x2014_000000000009.jpg ..., the photographs of COCO 2014

Tasks: vqav2_sft (the most common answer), vqav2_rm (pointwise), vqav2_prompts
(the question, with the ten answers as references). `tasks.vqa.soft_accuracy`
is the judge.

Splits: a hash of the image takes 5% of the images of train2014 for validation,
the rest is train. val2014 is test: the answers of the official test set are
not public.

vqav2_rm judges each question twice. The most common answer has label 1. An
answer that nobody gave has label 0. It is drawn, by a hash of the question's id
and SEED, from the most common answers to all questions of the same
`question_type` in the same file, so that frequent answers are drawn often. If
all of them are right, it is drawn from the questions of the same `answer_type`,
then from all. A row without a wrong answer is unusable.

Questions and annotations are joined by `question_id`; one without the other is
an unusable row.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
import os
import re
from typing import Any

import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import json_documents
from perlhf_jax.data import json_rows
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from tasks import vqa

SEED = 0
HOMEPAGE = 'https://visualqa.org/download.html'

_ANNOTATIONS = 'v2_mscoco_{}_annotations.json'
_QUESTIONS = 'v2_OpenEnded_mscoco_{}_questions.json'
_IMAGE = '{0}/COCO_{0}_{1:012d}.jpg'
_IMAGE_SET = re.compile(r'v2_mscoco_(\w+)_annotations\.json$')


def read(path: str) -> Iterator[json_rows.Row]:
  """Yields the annotations of a file, each with its question and image.

  A record is the annotation with `question`, a text, and `image`, a path.

  Args:
    path: the annotations; questions and images are found beside it.

  Raises:
    DataError: a file is missing or malformed.
  """
  questions_path, image_set = _neighbours(path)
  questions = _entries(questions_path, 'questions')
  by_id = {}
  for question in questions:
    by_id[_question_id(question)] = question
  found = set()
  for index, annotation in enumerate(_entries(path, 'annotations')):
    origin = f'{path}#{index}'
    question_id = _question_id(annotation)
    if question_id is None:
      yield json_rows.Row(origin, {}, 'the annotation has no question_id')
      continue
    found.add(question_id)
    question = by_id.get(question_id)
    if question is None:
      problem = f'the question {question_id} is not in {questions_path}'
      yield json_rows.Row(origin, {}, problem)
    else:
      folder = os.path.dirname(path)
      yield _joined(origin, annotation, question, folder, image_set)
  for index, question in enumerate(questions):
    if _question_id(question) not in found:
      problem = f'the question has no annotation in {path}'
      yield json_rows.Row(f'{questions_path}#{index}', {}, problem)


def read_with_pools(path: str) -> Iterator[json_rows.Row]:
  """Like `read`; records also have `pools`, lists of answers.

  The pools are the most common answers to the questions of the same
  `question_type`, of the same `answer_type`, and to all questions, each in the
  order of the file.

  Raises:
    DataError: a file is missing or malformed.
  """
  rows = list(read(path))
  pools = defaultdict(list)
  for row in rows:
    answer = row.record.get('multiple_choice_answer')
    if isinstance(answer, str):
      for name in _pool_names(row.record):
        pools[name].append(answer)
  for row in rows:
    likest_first = [pools[name] for name in _pool_names(row.record)]
    yield row._replace(record={**row.record, 'pools': likest_first})


def to_prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
  """Returns question and most common answer of a record of `read`."""
  return record['question'].strip(), record['multiple_choice_answer'].strip()


def parse_sft(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the most common answer as a demonstration."""
  _, response = to_prompt_and_response(record)
  return {**_shared(record), 'targets': response}


def parse_judged(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns a right and a wrong answer of a record of `read_with_pools`.

  Raises:
    ValueError: the pools have no wrong answer.
  """
  _, right = to_prompt_and_response(record)
  wrong = vqa.draw_wrong(
    f'{SEED}/{record["question_id"]}', _answers(record), record['pools']
  )
  return vqa.judge_both(right, wrong, **_shared(record))


def parse_prompt(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the question, with the answers of all people as references."""
  return {**_shared(record), 'references': _answers(record)}


def _shared(record: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'inputs': to_prompt_and_response(record)[0],
    'images': [record['image']],
    sources.SPLIT_KEY: os.path.basename(record['image']),
  }


def _answers(record: Mapping[str, Any]) -> list[str]:
  return [answer['answer'] for answer in record['answers']]


def _pool_names(record: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the pools of a record's answer, the narrowest first."""
  kinds = ('question_type', 'answer_type')
  return [(kind, str(record.get(kind))) for kind in kinds] + [('any', '')]


def _neighbours(path: str) -> tuple[str, str]:
  """Returns the path of the questions, and the name of the image set."""
  match = _IMAGE_SET.search(path)
  if not match:
    raise errors.DataError(
      f'{path} is not named like a file of annotations of VQAv2,'
      f' {_ANNOTATIONS.format("train2014")}. Keep the names of {HOMEPAGE}.'
    )
  image_set = match[1]
  questions = os.path.join(os.path.dirname(path), _QUESTIONS.format(image_set))
  if not tf.io.gfile.exists(questions):
    raise errors.DataError(
      f'{path} needs {questions}, which does not exist. Get it from {HOMEPAGE}.'
    )
  return questions, image_set


def _entries(path: str, field: str) -> list[Any]:
  entries = json_documents.load(path, dict).get(field)
  if not isinstance(entries, list):
    raise errors.DataError(
      f'{path} has no list {field!r}. Get the file again from {HOMEPAGE}.'
    )
  return entries


def _question_id(entry: Any) -> int | None:
  if not isinstance(entry, dict):
    return None
  question_id = entry.get('question_id')
  return question_id if isinstance(question_id, int) else None


def _joined(
  origin: str, annotation: dict, question: dict, folder: str, image_set: str
) -> json_rows.Row:
  image = annotation.get('image_id')
  if not isinstance(image, int) or image != question.get('image_id'):
    problem = (
      f'the annotation is about image {image!r}, the question about image'
      f' {question.get("image_id")!r}'
    )
    return json_rows.Row(origin, {}, problem)
  name = os.path.join(folder, _IMAGE.format(image_set, image))
  record = {**annotation, 'question': question.get('question'), 'image': name}
  return json_rows.Row(origin, record)


def _files(image_set: str) -> tuple[str, ...]:
  name = _ANNOTATIONS.format(image_set)
  return f'vqav2/{name}', name


for _name, _kind, _parse, _read in (
  ('sft', 'sft', parse_sft, read),
  ('rm', 'pointwise', parse_judged, read_with_pools),
  ('prompts', 'prompts', parse_prompt, read),
):
  preference_tasks.add_preference_task(
    f'vqav2_{_name}',
    _kind,
    _parse,
    (
      (
        sources.FileGroup(
          _files('train2014'), {'train': 0.95, 'validation': 0.05}
        ),
        sources.FileGroup(_files('val2014'), {'test': 1.0}),
      ),
    ),
    info=sources.DatasetInfo(
      description='VQAv2',
      homepage=HOMEPAGE,
      licence='annotations CC BY 4.0, images by the terms of Flickr',
      files=(
        '[vqav2/]v2_mscoco_{train,val}2014_annotations.json,'
        ' v2_OpenEnded_mscoco_{train,val}2014_questions.json and'
        ' {train,val}2014/COCO_*.jpg'
      ),
    ),
    read=_read,
    images=True,
    references=_kind == 'prompts',
  )
