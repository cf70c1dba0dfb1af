"""Taskmaster: thumbs up or down for turns of ordering and ticket assistants.

Source: https://github.com/google-research-datasets/Taskmaster, folders
TM-4-2024 (Coffee, 3,228 rows) and TM-3-2020 (Ticketing, 3,667 rows), licence
CC BY 4.0. These are the sets released with the paper's first version.

Files, under PERLHF_DATA_DIR directly or in `taskmaster-reward/`:
`TM-4-2024/reward/reward_*.json` and `TM-3-2020/reward/reward_*.json` as
upstream has them (arrays), or the same rows in `coffee.jsonl` and
`ticketing.jsonl`.

Tasks, for x in coffee, ticketing: taskmaster_x_rm (pointwise: label 1 is
thumbs up), taskmaster_x_sft (the turns with thumbs up), taskmaster_x_prompts.
There is no official split and contexts repeat, so a hash of the context splits
the rows: 80% train, 10% validation, 10% test. Most Coffee turns are good and
most Ticketing turns are bad; report ROC-AUC beside accuracy.

A turn of the assistant is a text or an API call. Both are written in a short
readable form, because each character costs a byte model a token:

  agent: Welcome to the Coffee Bar ...
  user: can i get an espresso please
  agent: call get_menu_items{query:espresso}
  api: get_menu_items{items:[{menu_item_id:espresso-0001,name:Espresso}]}
  agent:

Identifiers of 16 or more hexadecimal digits are shortened to their first 6
everywhere, so that references still match.
"""

from collections.abc import Mapping
import json
import re
from typing import Any

from perlhf_jax.core import strict_json
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import preprocessors
from perlhf_jax.data import sources

_SPLITS = {'train': 0.8, 'validation': 0.1, 'test': 0.1}
_DOMAINS = {'coffee': 'TM-4-2024', 'ticketing': 'TM-3-2020'}
_LONG_ID = re.compile(r'\b([0-9a-f]{6})[0-9a-f]{10,}\b')


def to_prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
  """Returns prompt and response of a raw record, as the tasks read them.

  Args:
    record: has `context`, a JSON list of turns, and `generation`, a JSON
      turn, both as strings.

  Raises:
    ValueError: `context` or `generation` is not such JSON.
  """
  turns = _load(record, 'context', list)
  generation = _load(record, 'generation', dict)
  prompt = preprocessors.render_dialogue(
    [(turn['role'], _turn_text(turn)) for turn in turns],
    next_speaker=generation['role'],
  )
  return prompt, ' '.join(_turn_text(generation).split())


def parse_judged(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the pointwise features of a raw record."""
  prompt, response = to_prompt_and_response(record)
  return {'inputs': prompt, 'targets': response, 'label': record['reward']}


def parse_sft(record: Mapping[str, Any]) -> dict[str, str] | None:
  """Returns a turn with thumbs up as a demonstration; None for others."""
  if record['reward'] != 1:
    return None
  prompt, response = to_prompt_and_response(record)
  return {'inputs': prompt, 'targets': response}


def parse_prompt(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns only the context."""
  return {'inputs': to_prompt_and_response(record)[0]}


def _load(record: Mapping[str, Any], field: str, kind: type) -> Any:
  try:
    value = strict_json.loads(record[field], allow_nan=True)
  except ValueError as error:
    raise ValueError(f'{field} is not valid JSON ({error})') from error
  if not isinstance(value, kind):
    raise ValueError(f'{field} is not a JSON {kind.__name__}')
  return value


def _turn_text(turn: Mapping[str, Any]) -> str:
  """Returns the text of a turn: a message, an API call or an API's answer."""
  if 'text' in turn:
    return turn['text']
  if 'api' in turn:
    return f'call {_compact(turn["api"], outermost=True)}'
  return _compact(turn['response'], outermost=True)


def _compact(value: Any, outermost: bool = False) -> str:
  """Returns JSON without quotes; the outermost object as name{arguments}."""
  if isinstance(value, dict):
    if outermost:
      return ' '.join(f'{key}{_compact(item)}' for key, item in value.items())
    items = (f'{key}:{_compact(item)}' for key, item in value.items())
    return '{' + ','.join(items) + '}'
  if isinstance(value, list):
    return '[' + ','.join(_compact(item) for item in value) + ']'
  text = value if isinstance(value, str) else json.dumps(value)
  return _LONG_ID.sub(r'\1', text)


for _domain, _folder in _DOMAINS.items():
  _files = tuple(
    place + name
    for place in ('taskmaster-reward/', '')
    for name in (f'{_folder}/reward/reward_*.json', f'{_domain}.jsonl')
  )
  for _name, _kind, _parse in (
    ('sft', 'sft', parse_sft),
    ('rm', 'pointwise', parse_judged),
    ('prompts', 'prompts', parse_prompt),
  ):
    preference_tasks.add_preference_task(
      f'taskmaster_{_domain}_{_name}',
      _kind,
      _parse,
      ((sources.FileGroup(_files, _SPLITS),),),
      info=sources.DatasetInfo(
        description=f'Taskmaster {_domain.capitalize()} rewards',
        homepage='https://github.com/google-research-datasets/Taskmaster',
        licence='CC BY 4.0',
        files=(
          f'[taskmaster-reward/]{_folder}/reward/reward_*.json or'
          f' [taskmaster-reward/]{_domain}.jsonl'
        ),
      ),
    )
