"""AndroidControl: is this the next action towards a goal on an Android phone?

Source: https://github.com/google-research/google-research, folder
`android_control` (Li et al. 2024); files (50 GB) at
https://console.cloud.google.com/storage/browser/gresearch/android_control, the
bucket folder gs://gresearch/android_control; CC BY 4.0.

Files, under PERLHF_DATA_DIR directly or in `android_control/`:
`android_control-*`, TFRecord files of episodes, and `splits.json` beside them.

Tasks: android_control_sft (the demonstrated actions), android_control_rm
(pointwise), android_control_prompts (with the demonstrated action as a
reference), and the same with a screenshot, android_control_screens_sft, _rm and
_prompts. A screenshot of more than 768 pixels on its longer side is scaled
down to 768 and becomes a JPEG. `android_actions.step_accuracy` is the judge.

Splits: train, validation and test are the episodes that `splits.json` lists.

Each step of an episode is an example. The prompt shows the elements of the
screen that `android_screens` finds in its accessibility tree (class, text, and
left, top, right and bottom in pixels), then the goal, up to 10 previous
actions, and the instruction for this step, if it has one. The response is the
action:

  Screen 1080x2400
  TextView "8:37" 145,1,229,136
  Button "Search" 891,146,1038,293
  Goal: Look for the next meeting
  Done: open_app Calendar; wait
  Step: Open the search
  Action:

  click 964,219

android_control_rm judges each step twice. The demonstrated action has label 1.
An action from `android_actions.wrong_action` has label 0: another type of
action, or another element, direction or app, drawn by hashes of SEED, the
episode and the step. It is nearly always wrong, but not always, because nobody
has judged which other actions lead to the goal.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any

import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.data import json_documents
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from perlhf_jax.data import tfrecord_rows
from tasks import android_actions
from tasks import android_screens
from tasks import vqa

SEED = 0
SPLITS = ('train', 'validation', 'test')
MAX_DONE = 10
HOMEPAGE = (
  'https://console.cloud.google.com/storage/browser/gresearch/android_control'
)


@dataclasses.dataclass(frozen=True)
class Step:
  """A step of an episode.

  Attributes:
    key: identifies the step among all steps.
    prompt: text of the prompt.
    action: the demonstrated action.
    elements: elements of the screen before the action.
    screenshot: that screen as an encoded PNG.
  """

  key: str
  prompt: str
  action: android_actions.Action
  elements: Sequence[android_screens.Element]
  screenshot: bytes


# Maps a step to the features of its examples, without prompt and screenshot.
_Answers = Callable[[Step], list[dict[str, Any]]]


def steps(record: Mapping[str, Any]) -> Iterator[Step]:
  """Yields the steps of an episode.

  Args:
    record: features of the episode, each a list of bytes or ints.

  Raises:
    KeyError: a feature is missing.
    ValueError: the features do not match each other or cannot be decoded.
  """
  number = find_episode_id(record)
  goal = _in_one_line(_only(record, 'goal'))
  actions = [_load_action(text) for text in record['actions']]
  instructions = [_in_one_line(text) for text in record['step_instructions']]
  trees, screenshots = record['accessibility_trees'], record['screenshots']
  widths, heights = record['screenshot_widths'], record['screenshot_heights']
  if len(instructions) != len(actions):
    raise ValueError(
      f'there are {len(actions)} actions and {len(instructions)} instructions'
    )
  for each in (trees, screenshots, widths, heights):
    if len(each) != len(actions) + 1:
      raise ValueError(
        f'there are {len(actions)} actions, {len(screenshots)} screenshots,'
        f' {len(widths)} widths, {len(heights)} heights and {len(trees)}'
        ' accessibility trees; of each there must be one more than actions'
      )
  done: list[str] = []
  for step, action in enumerate(actions):
    elements = android_screens.find_elements(trees[step])
    lines = [f'Screen {widths[step]}x{heights[step]}', *map(str, elements)]
    lines.append(f'Goal: {goal}')
    lines += [f'Done: {"; ".join(done[-MAX_DONE:])}'] * bool(done)
    lines += [f'Step: {instructions[step]}'] * bool(instructions[step])
    prompt = '\n'.join([*lines, 'Action:'])
    yield Step(f'{number}/{step}', prompt, action, elements, screenshots[step])
    done.append(android_actions.action_text(action))


def demonstrate(step: Step) -> list[dict[str, Any]]:
  """Returns the demonstrated action."""
  return [{'targets': android_actions.action_text(step.action)}]


def judge(step: Step) -> list[dict[str, Any]]:
  """Returns the demonstrated action and a wrong one."""
  wrong = android_actions.wrong_action(
    f'{SEED}/{step.key}', step.action, step.elements
  )
  right = android_actions.action_text(step.action)
  return vqa.judge_both(right, android_actions.action_text(wrong))


def refer(step: Step) -> list[dict[str, Any]]:
  """Returns the demonstrated action as the reference of a prompt."""
  return [{'references': [android_actions.action_text(step.action)]}]


def find_episode_id(record: Mapping[str, Any]) -> int:
  """Returns the episode number of a record.

  Raises:
    KeyError: the record has no field for it.
    ValueError: the field does not hold exactly one number.
  """
  return _only(record, 'episode_id')


def _only(record: Mapping[str, Any], field: str) -> Any:
  values = record[field]
  if len(values) != 1:
    raise ValueError(f'{field} holds {len(values)} values, not one')
  return values[0]


def _in_one_line(text: bytes) -> str:
  return ' '.join(text.decode('utf-8').split())


def _load_action(text: bytes) -> android_actions.Action:
  try:
    action = strict_json.loads(text, allow_nan=True)
  except ValueError as error:
    raise ValueError(f'an action is not valid JSON ({error})') from error
  if not isinstance(action, dict):
    raise ValueError(f'the action {text!r} is not a JSON object')
  return action


def _parser(answers: _Answers, has_screens: bool) -> sources.Parse:
  """Makes the function that returns the examples of an episode."""

  def parse(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    examples = []
    for step in steps(record):
      shared: dict[str, Any] = {'inputs': step.prompt}
      if has_screens:
        shared['images'] = [android_screens.shrink(step.screenshot)]
      examples += [shared | features for features in answers(step)]
    return examples

  return parse


def _find_splits(path: str) -> Callable[[Mapping[str, Any]], str]:
  """Makes the function that looks an episode's split up in `splits.json`."""
  listed = os.path.join(os.path.dirname(path), 'splits.json')
  split_of = _read_splits(listed)

  def find_split(record: Mapping[str, Any]) -> str:
    number = find_episode_id(record)
    if number not in split_of:
      raise ValueError(f'the episode {number} is in no split of {listed}')
    return split_of[number]

  return find_split


def _read_splits(path: str) -> dict[int, str]:
  """Returns the split of each episode, by number."""
  if not tf.io.gfile.exists(path):
    raise errors.DataError(
      f'{path}, which lists the episodes of each split, does not exist. Get it'
      f' from {HOMEPAGE} and put it beside the TFRecord files.'
    )
  document = json_documents.load(path, dict)
  for split in SPLITS:
    if not isinstance(document.get(split), list):
      raise errors.DataError(
        f'{path} has no list {split!r} of episodes. Get it again from'
        f' {HOMEPAGE}.'
      )
  return {number: split for split in SPLITS for number in document[split]}


def _add_task(name: str, kind: str, answers: _Answers, has_screens: bool):
  files = ('android_control/android_control-*', 'android_control-*')
  preference_tasks.add_text_task(
    name,
    sources.FileSource(
      kind,
      ((sources.FileGroup(files, dict.fromkeys(SPLITS, 1.0)),),),
      _parser(answers, has_screens),
      sources.DatasetInfo(
        description='AndroidControl',
        homepage=HOMEPAGE,
        licence='CC BY 4.0',
        files='[android_control/]android_control-* and splits.json',
      ),
      read=tfrecord_rows.read,
      images=has_screens,
      references=kind == 'prompts',
      find_splits=_find_splits,
    ),
  )


for _name, _kind, _answers in (
  ('sft', 'sft', demonstrate),
  ('rm', 'pointwise', judge),
  ('prompts', 'prompts', refer),
):
  _add_task(f'android_control_{_name}', _kind, _answers, False)
  _add_task(f'android_control_screens_{_name}', _kind, _answers, True)
