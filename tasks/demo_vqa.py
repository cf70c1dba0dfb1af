"""Built-in tasks on the pictures of `demo_vqa_world`, which need no files.

demo_vqa_sft: imperfect demonstrations. demo_vqa_rm: judged answers, half of
them right. demo_vqa_prompts: questions to answer, with right answers as
references. demo_vqa_gold: right answers, for evaluation. `gold_scores` judges
answers. The data is made by our own code, so no other licence applies.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import random
from typing import Any

from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from tasks import demo_vqa_world as world
from tasks import demo_world

SEED = 0
NUM_TRAIN = 12_000
NUM_VALIDATION = 500
NUM_TEST = 1_000
SPLIT_SIZES = {
  'train': NUM_TRAIN,
  'validation': NUM_VALIDATION,
  'test': NUM_TEST,
}

gold_score = world.gold_score

# Makes the features of an example, without prompt and picture.
_Answer = Callable[[random.Random, world.Scene, world.Question], dict[str, Any]]

_INFO = sources.DatasetInfo(
  description='drawn pictures of shapes and questions about them',
  homepage='tasks/demo_vqa_world.py',
  licence='Apache-2.0',
)


def to_prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
  """Returns question and answer of a record of any of these tasks."""
  if 'references' in record:
    return record['inputs'], record['references'][0]
  return record['inputs'], record['targets']


def gold_scores(
  prompts: Sequence[str],
  responses: Sequence[str],
  references: Sequence[Sequence[str]],
) -> list[float]:
  """Returns the gold score of each response; a reward function or judge.

  Args:
    prompts: questions, which are ignored.
    responses: answers to the questions.
    references: right answers to each question.
  """
  del prompts
  pairs = zip(references, responses, strict=True)
  return [gold_score(answers, response) for answers, response in pairs]


def make_sft(split: str) -> Iterator[dict[str, Any]]:
  """Yields the demonstrations of a split, in order."""
  return _make('sft', _demonstration, split)


def make_judged(split: str) -> Iterator[dict[str, Any]]:
  """Yields the judged answers of a split, in order."""
  return _make('rm', _judged, split)


def make_prompts(split: str) -> Iterator[dict[str, Any]]:
  """Yields the questions of a split with their right answers, in order."""
  return _make('prompts', _references, split)


def make_gold(split: str) -> Iterator[dict[str, Any]]:
  """Yields right answers to the questions of `make_prompts`, in order."""
  return _make('prompts', _right, split)


def _make(stream: str, answer: _Answer, split: str) -> Iterator[dict[str, Any]]:
  for index in range(SPLIT_SIZES[split]):
    rng = demo_world.example_rng(SEED, f'vqa_{stream}', split, index)
    scene, question = world.sample_question(rng, split)
    image = world.draw(scene)
    features = answer(rng, scene, question)
    yield {'inputs': question.text, **features, 'images': [image]}


def _demonstration(rng, scene, question):
  return {'targets': world.sample_demonstration(rng, scene, question)}


def _judged(rng, scene, question):
  if rng.random() < 0.5:
    return {'targets': question.answer, 'label': 1}
  return {'targets': world.sample_wrong(rng, scene, question), 'label': 0}


def _references(rng, scene, question):
  del rng, scene
  return {'references': [question.answer]}


def _right(rng, scene, question):
  del rng, scene
  return {'targets': question.answer}


for _name, _kind, _make_rows in (
  ('demo_vqa_sft', 'sft', make_sft),
  ('demo_vqa_rm', 'pointwise', make_judged),
  ('demo_vqa_prompts', 'prompts', make_prompts),
  ('demo_vqa_gold', 'sft', make_gold),
):
  preference_tasks.add_text_task(
    _name,
    sources.PythonSource(
      _kind,
      world.SPLITS,
      _make_rows,
      _INFO,
      images=True,
      references=_kind == 'prompts',
    ),
  )
