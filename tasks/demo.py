"""Built-in tasks on the world of `demo_world`, which need no files.

demo_sft: imperfect demonstrations. demo_rm: pairs. demo_rm_pointwise: judged
responses. demo_prompts: notes to answer. `gold_score` judges answers. The data
is made by our own code, so no other licence applies.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from tasks import demo_world

SEED = 0
NUM_TRAIN = 20_000
NUM_VALIDATION = 1_000
NUM_TEST = 1_000
SPLIT_SIZES = {
  'train': NUM_TRAIN,
  'validation': NUM_VALIDATION,
  'test': NUM_TEST,
}

gold_score = demo_world.gold_score

_INFO = sources.DatasetInfo(
  description='to-do notes whose urgent entries are to be named',
  homepage='tasks/demo_world.py',
  licence='Apache-2.0',
)


def to_prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
  """Returns prompt and response (of a pair, chosen) of a demo record."""
  response = record['chosen'] if 'chosen' in record else record['targets']
  return record['inputs'], response


def gold_scores(
  prompts: Sequence[str], responses: Sequence[str]
) -> list[float]:
  """Returns the gold score of each response; a reward function or judge."""
  pairs = zip(prompts, responses, strict=True)
  return [gold_score(prompt, response) for prompt, response in pairs]


def make_sft(split: str) -> Iterator[dict[str, Any]]:
  """Yields the demonstrations of a split, in order."""
  for index in range(SPLIT_SIZES[split]):
    rng = demo_world.example_rng(SEED, 'sft', split, index)
    note = demo_world.sample_note(rng, split)
    response = demo_world.sample_demonstration(rng, note)
    yield {'inputs': note.prompt, 'targets': response}


def make_pairs(split: str) -> Iterator[dict[str, Any]]:
  """Yields the preferences of a split, in order."""
  for index in range(SPLIT_SIZES[split]):
    rng = demo_world.example_rng(SEED, 'rm', split, index)
    prompt, chosen, rejected = demo_world.sample_pair(rng, split)
    yield {'inputs': prompt, 'chosen': chosen, 'rejected': rejected}


def make_judged(split: str) -> Iterator[dict[str, Any]]:
  """Yields the judged responses of a split, in order."""
  for index in range(SPLIT_SIZES[split]):
    rng = demo_world.example_rng(SEED, 'rm_pointwise', split, index)
    prompt, response, label = demo_world.sample_judged(rng, split)
    yield {'inputs': prompt, 'targets': response, 'label': label}


def make_prompts(split: str) -> Iterator[dict[str, Any]]:
  """Yields the notes of a split, in order."""
  for index in range(SPLIT_SIZES[split]):
    rng = demo_world.example_rng(SEED, 'prompts', split, index)
    yield {'inputs': demo_world.sample_note(rng, split).prompt}


for _name, _kind, _make in (
  ('demo_sft', 'sft', make_sft),
  ('demo_rm', 'pairwise', make_pairs),
  ('demo_rm_pointwise', 'pointwise', make_judged),
  ('demo_prompts', 'prompts', make_prompts),
):
  preference_tasks.add_text_task(
    _name, sources.PythonSource(_kind, demo_world.SPLITS, _make, _INFO)
  )
