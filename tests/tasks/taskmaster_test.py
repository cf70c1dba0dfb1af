import json

import pytest
import task_files

from perlhf_jax.core import errors
from tasks import taskmaster

ORDER_ID = '9caad54304794fb894ac5a4ec598b4ef'
CONTEXT = [
  {'role': 'agent', 'text': 'Welcome to\n the bar. '},
  {'role': 'user', 'text': 'an espresso please'},
  {'role': 'agent', 'api': {'get_menu_items': {'query': 'espresso'}}},
  {
    'role': 'api',
    'response': {
      'get_menu_items': {
        'items': [
          {'menu_item_id': 'espresso-0001', 'options': ['Single', 'Double']},
          {'menu_item_id': 'mocha-0006', 'price': 3.5, 'hot': True},
        ],
        'order_id': ORDER_ID,
      }
    },
  },
]
RENDERED = """agent: Welcome to the bar.
user: an espresso please
agent: call get_menu_items{query:espresso}
api: get_menu_items{items:[\
{menu_item_id:espresso-0001,options:[Single,Double]},\
{menu_item_id:mocha-0006,price:3.5,hot:true}],order_id:9caad5}
agent:"""


def record(index, reward, generation=None):
  context = [{'role': 'user', 'text': f'order {index}'}, *CONTEXT]
  turn = generation or {'role': 'agent', 'text': f'Here is {index}.'}
  return {
    'conversation_id': f'dlg-{index}',
    'context': json.dumps(context),
    'generation': json.dumps(turn),
    'reward': reward,
  }


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.json':
    path.write_text(json.dumps(rows, indent=4))
  else:
    path.write_text('\n'.join(json.dumps(row) for row in rows))


def load(name, split='train', **kwargs):
  return task_files.load(name, split, inputs=512, targets=128, **kwargs)


def test_rendering():
  row = {
    'context': json.dumps(CONTEXT),
    'generation': json.dumps(
      {'role': 'agent', 'api': {'add': {'id': ORDER_ID, 'n': '1'}, 'go': {}}}
    ),
  }
  prompt, response = taskmaster.to_prompt_and_response(row)
  assert prompt == RENDERED
  assert response == 'call add{id:9caad5,n:1} go{}'


@pytest.mark.parametrize(
  'files',
  [
    ('taskmaster-reward/TM-4-2024/reward/reward_{}.json',) * 2,
    ('TM-4-2024/reward/reward_{}.json',) * 2,
    ('taskmaster-reward/coffee.jsonl',),
    ('coffee.jsonl',),
  ],
)
def test_upstream_layouts(data_dir, files):
  rows = [record(i, float(i % 2)) for i in range(40)]
  if len(files) == 2:
    write(data_dir / files[0].format('00'), rows[:25])
    write(data_dir / files[1].format('01'), rows[25:])
  else:
    write(data_dir / files[0], rows)
  splits = [
    load('taskmaster_coffee_rm', split)
    for split in ('train', 'validation', 'test')
  ]
  assert sum(len(examples) for examples in splits) == 40
  assert len(splits[0]) > 24
  assert 0 < splits[0].columns['label'].mean() < 1


def test_a_context_is_in_one_split_only(data_dir):
  rows = [record(i % 10, float(i < 10)) for i in range(20)]
  write(data_dir / 'ticketing.jsonl', rows)
  for split in ('train', 'validation', 'test'):
    try:
      examples = load('taskmaster_ticketing_rm', split)
    except errors.DataError as error:
      assert 'no usable rows' in str(error)
      continue
    prompts = [examples.texts(i)['inputs'] for i in range(len(examples))]
    assert all(prompts.count(prompt) == 2 for prompt in prompts)


def test_tasks_agree_with_to_prompt_and_response(data_dir):
  rows = [record(i, float(i % 2)) for i in range(12)]
  write(data_dir / 'coffee.jsonl', rows)
  judged = load('taskmaster_coffee_rm')
  expected = {
    (*taskmaster.to_prompt_and_response(row), row['reward']) for row in rows
  }
  found = {
    (text['inputs'], text['targets'], text['label'])
    for text in map(judged.texts, range(len(judged)))
  }
  assert found <= expected
  good = {(prompt, response) for prompt, response, label in found if label}
  demonstrations = load('taskmaster_coffee_sft')
  assert good == {
    (text['inputs'], text['targets'])
    for text in map(demonstrations.texts, range(len(demonstrations)))
  }
  prompts = load('taskmaster_coffee_prompts')
  assert {prompts.texts(i)['inputs'] for i in range(len(prompts))} == {
    prompt for prompt, _, _ in found
  }


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    ({'reward': 0.5}, 'neither 0 nor 1'),
    ({'reward': None}, 'not a number'),
    ({'generation': '{'}, 'generation is not valid JSON'),
    ({'context': '{}'}, 'context is not a JSON list'),
    ({'context': None}, 'wrong type'),
    ({'generation': '{"role": "agent", "text": " "}'}, 'empty'),
    ({'generation': '{"role": "agent"}'}, "'response' is missing"),
  ],
)
def test_bad_rows_are_named(data_dir, change, problem):
  path = data_dir / 'TM-3-2020/reward/reward_00.json'
  write(path, [{**record(i, 1.0), **change} for i in range(30)])
  with pytest.raises(errors.DataError, match=problem) as caught:
    load('taskmaster_ticketing_rm')
  assert f'{path}#' in str(caught.value)


def test_missing_files_say_where_to_get_them(data_dir):
  with pytest.raises(errors.DataError, match=r'coffee\.jsonl.*CC BY 4\.0'):
    load('taskmaster_coffee_rm')
