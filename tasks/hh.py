r"""Anthropic's HH-RLHF: which of two answers is more harmless or helpful.

Source: https://github.com/anthropics/hh-rlhf (Bai et al. 2022), MIT licence.
The dialogues contain offensive content.

Files, under PERLHF_DATA_DIR directly or in `hh-rlhf/`: `harmless-base/` and
`helpful-base/`, each with `train.jsonl` and `test.jsonl`, plain or `.gz`. A
hash of the prompt takes 5% of the train file for validation, and the test
file is the test split. If only the test file exists, a hash of the prompt
splits it into 80% train, 10% validation and 10% test; the log says so.

Tasks, for x in harmless, helpful: hh_x_sft (the chosen answers), hh_x_rm
(pairwise), hh_x_prompts.

A record holds two whole dialogues, `chosen` and `rejected`. The prompt is
everything up to the last `\n\nAssistant:`. In the few rows where the dialogues
differ earlier, it is their common beginning up to such a marker; the rest of
each dialogue is the response (`preprocessors.split_dialogue_pair`).
"""

from collections.abc import Mapping
from typing import Any

from perlhf_jax.data import preference_tasks
from perlhf_jax.data import preprocessors
from perlhf_jax.data import sources

_SUBSETS = {'harmless': 'harmless-base', 'helpful': 'helpful-base'}


def to_prompt_and_response(
  record: Mapping[str, Any], which: str = 'chosen'
) -> tuple[str, str]:
  """Returns prompt and response of a raw record, as the tasks read them.

  Args:
    record: has the dialogues `chosen` and `rejected`.
    which: response to return, `chosen` or `rejected`.
  """
  pair = parse_pair(record)
  return pair['inputs'], pair[which]


def parse_pair(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns the pairwise features of a raw record."""
  prompt, chosen, rejected = preprocessors.split_dialogue_pair(
    record['chosen'], record['rejected']
  )
  return {'inputs': prompt, 'chosen': chosen, 'rejected': rejected}


def parse_sft(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns the chosen answer as a demonstration."""
  prompt, response = to_prompt_and_response(record)
  return {'inputs': prompt, 'targets': response}


def parse_prompt(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns only the prompt."""
  return {'inputs': to_prompt_and_response(record)[0]}


def _files(folder: str, split: str) -> tuple[str, ...]:
  return tuple(
    f'{place}{folder}/{split}.{suffix}'
    for place in ('hh-rlhf/', '')
    for suffix in ('jsonl', 'jsonl.gz')
  )


for _subset, _folder in _SUBSETS.items():
  _train, _test = _files(_folder, 'train'), _files(_folder, 'test')
  _LAYOUTS = (
    (
      sources.FileGroup(_train, {'train': 0.95, 'validation': 0.05}),
      sources.FileGroup(_test, {'test': 1.0}),
    ),
    (sources.FileGroup(_test, {'train': 0.8, 'validation': 0.1, 'test': 0.1}),),
  )
  for _name, _kind, _parse in (
    ('sft', 'sft', parse_sft),
    ('rm', 'pairwise', parse_pair),
    ('prompts', 'prompts', parse_prompt),
  ):
    preference_tasks.add_preference_task(
      f'hh_{_subset}_{_name}',
      _kind,
      _parse,
      _LAYOUTS,
      info=sources.DatasetInfo(
        description=f'HH-RLHF {_folder}',
        homepage='https://github.com/anthropics/hh-rlhf',
        licence='MIT',
        files=f'[hh-rlhf/]{_folder}/{{train,test}}.jsonl[.gz]',
      ),
    )
