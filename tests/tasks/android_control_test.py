import collections
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from tasks import android_actions
from tasks import android_control
from tasks import android_screens
from tests.tasks import make_fixtures

SPLITS = {'train': [1, 2], 'validation': [3], 'test': [4]}
ELEMENTS = [
  android_screens.Element('TextView', 'Title', (0, 0, 100, 10), False),
  android_screens.Element('Button', 'One', (0, 20, 100, 40), True),
  android_screens.Element('Button', 'Two', (0, 40, 100, 60), True),
  android_screens.Element('Image', '', (40, 45, 60, 55), True),  # In Two.
  android_screens.Element('Button', 'Three', (0, 80, 100, 99), True),
]
CLICK = {'action_type': 'click', 'x': 10, 'y': 50}  # Two.


def episode(number, **changes):
  fields = {
    'goal': f'Goal {number}',
    'screens': [make_fixtures.NOTES, make_fixtures.NOTES],
    'actions': [{'action_type': 'wait'}],
    'instructions': ['Wait'],
    'size': (90, 200),
  }
  return make_fixtures.make_episode(number, **(fields | changes))


def write(folder, shards, splits=SPLITS):
  folder.mkdir(parents=True, exist_ok=True)
  for index, records in enumerate(shards):
    name = f'android_control-{index:05d}-of-{len(shards):05d}'
    with tf.io.TFRecordWriter(str(folder / name), 'GZIP') as writer:
      for record in records:
        writer.write(record)
  if splits is not None:
    (folder / 'splits.json').write_text(json.dumps(splits))


def rows(task, split):
  return list(seqio.TaskRegistry.get(task).source.rows(split))


@pytest.mark.parametrize('place', ['android_control', '.'])
def test_official_splits_over_all_shards(data_dir, place):
  write(
    data_dir / place,
    [[episode(3), episode(1)], [episode(4), episode(2)]],
  )
  goals = {
    split: [
      row['inputs'].split('Goal: ')[1].split('\n')[0]
      for row in rows('android_control_sft', split)
    ]
    for split in android_control.SPLITS
  }
  assert goals == {
    'train': ['Goal 1', 'Goal 2'],
    'validation': ['Goal 3'],
    'test': ['Goal 4'],
  }


def test_missing_splits_say_where_to_get_them(data_dir):
  write(data_dir, [[episode(1)]], splits=None)
  with pytest.raises(
    errors.DataError, match=r'splits\.json.* does not exist.*gresearch'
  ):
    rows('android_control_rm', 'train')
  (data_dir / 'splits.json').write_text('{"train": [1]}')
  with pytest.raises(errors.DataError, match="no list 'validation'"):
    rows('android_control_rm', 'train')


def test_missing_files_say_where_to_get_them(data_dir):
  with pytest.raises(errors.DataError, match=r'android_control-\*.*CC BY'):
    rows('android_control_rm', 'train')


def test_steps_of_an_episode_become_examples(data_dir):
  actions = [{'action_type': 'wait'}] * 11 + [CLICK]
  record = episode(
    1,
    screens=[make_fixtures.HOME] * 13,
    actions=actions,
    instructions=['Wait \n a bit'] * 11 + [''],
  )
  write(data_dir, [[record]])
  first, *_, last = rows('android_control_sft', 'train')
  assert first['inputs'] == (
    'Screen 90x200\n'
    'TextView "9:41 / 9:41 AM" 10,0,60,20\n'
    'TextView "Notes" 20,40,80,90\n'
    'Goal: Goal 1\n'
    'Step: Wait a bit\n'
    'Action:'
  )
  assert first['targets'] == 'wait'
  end = f'Goal: Goal 1\nDone: {"; ".join(["wait"] * 10)}\nAction:'
  assert last['inputs'].endswith(end)
  assert last['targets'] == 'click 10,50'
  prompts = rows('android_control_prompts', 'train')
  assert prompts[-1]['references'] == ['click 10,50']
  assert prompts[0]['inputs'] == first['inputs']


def test_each_step_is_judged_rightly_and_wrongly(data_dir):
  actions = [{'action_type': 'click', 'x': 180, 'y': 65}] * 30
  record = episode(
    1,
    screens=[make_fixtures.NOTES] * 31,
    actions=actions,
    instructions=['Click'] * 30,
  )
  write(data_dir, [[record]])
  judged = rows('android_control_rm', 'train')
  assert [row['label'] for row in judged] == [1, 0] * 30
  assert {row['targets'] for row in judged[::2]} == {'click 180,65'}
  wrong = judged[1::2]
  scores = android_actions.step_accuracy(
    [row['inputs'] for row in wrong],
    [row['targets'] for row in wrong],
    [['click 180,65']] * 30,
  )
  assert set(scores) == {0}
  assert len({row['targets'] for row in wrong}) > 3
  assert rows('android_control_rm', 'train') == judged


def test_screenshots_are_shrunk_if_they_are_large(data_dir):
  write(data_dir, [[episode(1, size=(600, 1536)), episode(2, size=(90, 768))]])
  large, small = rows('android_control_screens_rm', 'train')[::2]
  (image,) = large['images']
  assert image.startswith(b'\xff\xd8\xff')  # JPEG
  assert tf.io.decode_image(image).shape == (768, 300, 3)
  (image,) = small['images']
  assert image.startswith(b'\x89PNG')
  assert tf.io.decode_image(image).shape == (768, 90, 3)
  text_only = rows('android_control_rm', 'train')[0]
  assert text_only['inputs'] == large['inputs'] and 'images' not in text_only


def test_shrinking_keeps_the_picture():
  pixels = np.zeros((1600, 800, 3), np.uint8)
  pixels[:800, :, 0] = 200
  shrunk = android_screens.shrink(tf.io.encode_png(pixels).numpy())
  found = tf.io.decode_image(shrunk).numpy().astype(int)
  assert abs(found[:380] - (200, 0, 0)).max() < 8
  assert found[390:].max() < 8


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'instructions': []}, '1 actions and 0 instructions'),
    ({'screens': [make_fixtures.HOME]}, '1 accessibility trees'),
    ({'screens': [b'\xff'] * 2}, 'tree cannot be decoded'),
    ({'actions': [{'action_type': 'dance'}]}, "action type is 'dance'"),
    ({'actions': [{'action_type': 'scroll'}]}, "'direction' is missing"),
    ({'actions': [[]]}, 'is not a JSON object'),
    ({'actions': [{**CLICK, 'x': 'left'}]}, 'wrong type'),
  ],
)
def test_bad_episodes_are_named(data_dir, changes, problem):
  write(data_dir, [[episode(1), episode(2, **changes)]])
  good, _, bad = rows('android_control_rm', 'train')
  assert not good['problem']
  assert problem in bad['problem']
  assert bad['origin'].endswith('android_control-00000-of-00001#1')
  assert not rows('android_control_rm', 'test')


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    (lambda fields: fields.pop('goal'), "'goal' is missing"),
    (lambda fields: fields['goal'].Clear(), 'goal holds 0 values'),
    (lambda fields: fields.pop('episode_id'), "'episode_id' is missing"),
    (
      lambda fields: fields['actions'].bytes_list.value.__setitem__(0, b'{'),
      'not valid JSON',
    ),
    (
      lambda fields: fields['screenshots'].bytes_list.value.__setitem__(
        0, b'x'
      ),
      'screenshot cannot be decoded',
    ),
    (
      lambda fields: fields['episode_id'].int64_list.value.__setitem__(0, 99),
      'episode 99 is in no split of',
    ),
  ],
)
def test_bad_records_are_named(data_dir, change, problem):
  example = tf.train.Example.FromString(episode(1))
  change(example.features.feature)
  write(data_dir, [[example.SerializeToString()]])
  (row,) = rows('android_control_screens_sft', 'train')
  assert problem in row['problem']


def field(number, content):
  """A length-delimited field, or a varint of one byte, as on the wire."""
  if isinstance(content, int):
    return bytes([number << 3, content])
  return bytes([number << 3 | 2, len(content)]) + content


def long_field(number, content):
  """Of a number from 16 on, whose tag takes two bytes."""
  tag = number << 3
  return bytes([tag & 0x7F | 0x80, tag >> 7, content])


def test_trees_are_read_by_the_numbers_of_the_schema():
  # Made by hand, not by the classes under test.
  bounds = field(1, 1) + field(2, 2) + field(3, 30) + field(4, 40)
  node = (
    field(1, 5)  # unique_id, which is not declared.
    + field(2, bounds)
    + field(3, b'android.widget.Button')
    + field(4, b'Send it')
    + field(5, b'Hint')
    + field(6, b'com.example')
    + field(7, b'Send')
    + field(14, 1)  # is_clickable
    + long_field(23, 1)  # is_visible_to_user
  )
  window = field(3, 9) + field(6, 1) + field(11, field(1, node))
  (element,) = android_screens.find_elements(field(1, window))
  assert str(element) == 'Button "Send / Send it / Hint" 1,2,30,40'
  assert element.is_interactive
  assert element.center == (15, 21)


def test_what_is_not_seen_or_says_nothing_is_left_out():
  visible, clickable = 'is_visible_to_user', 'is_clickable'
  tree = make_fixtures.make_tree(
    (
      1,
      ('View', 'hidden', '', (0, 0, 9, 9)),
      ('View', 'flat', '', (0, 0, 9, 0), visible),
      ('View', ' ', '', (0, 0, 9, 9), visible),
      ('View', '', '', (0, 0, 9, 9), visible, clickable),
      ('View', 'x' * 70, '', (0, 0, 9, 9), visible),
    ),
    (3, ('View', 'system', '', (0, 0, 9, 9), visible)),
  )
  lines = list(map(str, android_screens.find_elements(tree)))
  assert lines == [
    'View "system" 0,0,9,9',
    'View 0,0,9,9',
    f'View "{"x" * 57}..." 0,0,9,9',
  ]


def test_the_last_of_too_many_elements_are_kept():
  nodes = [
    ('View', str(index), '', (0, 0, 9, 9), 'is_visible_to_user')
    for index in range(100)
  ]
  elements = android_screens.find_elements(make_fixtures.make_tree((1, *nodes)))
  assert [each.label for each in elements] == [str(i) for i in range(20, 100)]


@pytest.mark.parametrize(
  ('action', 'text'),
  [
    (CLICK, 'click 10,50'),
    ({**CLICK, 'action_type': 'long_press'}, 'long_press 10,50'),
    ({**CLICK, 'action_type': 'type', 'text': 'a\nb'}, 'type 10,50 a b'),
    ({'action_type': 'scroll', 'direction': 'up'}, 'scroll up'),
    ({'action_type': 'open_app', 'app_name': 'My Maps'}, 'open_app My Maps'),
    ({'action_type': 'input_text', 'text': '  '}, 'input_text'),
    ({'action_type': 'navigate_home'}, 'navigate_home'),
    ({'action_type': 'navigate_back'}, 'navigate_back'),
    ({'action_type': 'wait'}, 'wait'),
  ],
)
def test_every_type_of_action_as_text_and_made_wrong(action, text):
  assert android_actions.action_text(action) == text
  prompt = '\n'.join(map(str, ELEMENTS))
  for key in range(40):
    wrong = android_actions.wrong_action(str(key), action, ELEMENTS)
    wrong = android_actions.action_text(wrong)
    assert android_actions.step_accuracy([prompt], [wrong], [[text]]) == [0]
    # Without a screen too.
    wrong = android_actions.wrong_action(str(key), action, [])
    assert android_actions.action_text(wrong) != text


def test_changes_of_a_click_are_spread():
  wrong = collections.Counter(
    android_actions.action_text(
      android_actions.wrong_action(str(key), CLICK, ELEMENTS)
    )
    for key in range(1000)
  )
  # The title takes no clicks, and the image lies in what is clicked.
  clicks = {'click 50,30', 'click 50,89'}
  scrolls = {f'scroll {way}' for way in ('up', 'down', 'left', 'right')}
  others = {'navigate_back', 'navigate_home', 'wait'}
  assert set(wrong) == clicks | scrolls | others
  assert 440 < sum(wrong[each] for each in clicks) < 560
  for group in (scrolls, *({each} for each in others)):
    assert 90 < sum(wrong[each] for each in group) < 160


def test_arguments_change_within_their_kind():
  opened, scrolled = set(), set()
  for key in map(str, range(200)):
    action = {'action_type': 'open_app', 'app_name': 'gmail'}
    opened.add(android_actions.wrong_action(key, action, []).get('app_name'))
    action = {'action_type': 'scroll', 'direction': 'up'}
    scrolled.add(android_actions.wrong_action(key, action, []).get('direction'))
  assert opened == {None, *android_actions.APPS} - {'Gmail'}
  assert scrolled == {None, 'down', 'left', 'right'}


@pytest.mark.parametrize(
  ('response', 'demonstrated', 'score'),
  [
    ('click 99,59', 'click 10,50', 100),  # Anywhere on Two.
    ('click 10, 58 ', 'click 10,50', 100),
    ('click 10,30', 'click 10,50', 0),
    ('click 10,50', 'click 50,50', 0),  # The image alone was meant.
    ('click 42,46', 'click 50,50', 100),
    ('long_press 10,50', 'click 10,50', 0),
    ('click 300,300', 'click 300,300', 100),  # Where nothing is.
    ('click 300,301', 'click 300,300', 0),
    ('click', 'click 10,50', 0),
    ('type 20,50 Hello', 'type 10,50 hello', 100),
    ('type 20,50 bye', 'type 10,50 hello', 0),
    ('open_app  Gmail', 'open_app gmail', 100),
    ('wait', 'wait', 100),
    ('', 'wait', 0),
  ],
)
def test_step_accuracy(response, demonstrated, score):
  prompt = '\n'.join(map(str, ELEMENTS))
  found = android_actions.step_accuracy([prompt], [response], [[demonstrated]])
  assert found == [score]
  # A tokeniser may have made spaces of line breaks.
  prompt = prompt.replace('\n', ' ')
  found = android_actions.step_accuracy(
    [prompt], [response], [['scroll up', demonstrated]]
  )
  assert found == [score]
