"""Actions of AndroidControl: their text form, wrong actions, and a judge."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from tasks import android_screens
from tasks import seeded_draws

# Apps that a wrong action may open.
APPS = (
  'Calculator',
  'Calendar',
  'Camera',
  'Chrome',
  'Clock',
  'Contacts',
  'Files',
  'Gmail',
  'Google Maps',
  'Messages',
  'Phone',
  'Photos',
  'Play Store',
  'Settings',
  'Spotify',
  'YouTube',
)
_DIRECTIONS = ('up', 'down', 'left', 'right')
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
  'click': ('point',),
  'long_press': ('point',),
  'type': ('point', 'text'),
  'scroll': ('direction',),
  'open_app': ('app_name',),
  'input_text': ('text',),
  'navigate_home': (),
  'navigate_back': (),
  'wait': (),
}
_POINT = re.compile(r'(-?\d+)\s*,\s*(-?\d+)')
_BOUNDS = re.compile(r'(-?\d+),(-?\d+),(-?\d+),(-?\d+)')

Action = Mapping[str, Any]
Elements = Sequence[android_screens.Element]


def action_text(action: Action) -> str:
  """Returns an action as one line: its type, a point as `x,y`, and text.

  Args:
    action: `action_type` and its arguments.

  Raises:
    KeyError: an argument is missing.
    ValueError: the type is unknown.
  """
  kind = action['action_type']
  if kind not in _PARAMETERS:
    raise ValueError(
      f'the action type is {kind!r}, not one of {", ".join(_PARAMETERS)}'
    )
  words = [kind]
  for parameter in _PARAMETERS[kind]:
    if parameter == 'point':
      words.append(f'{int(action["x"])},{int(action["y"])}')
    else:
      words.append(' '.join(action[parameter].split()))
  return ' '.join(filter(None, words))


def wrong_action(key: str, action: Action, elements: Elements) -> Action:
  """Returns an action other than the demonstrated one, drawn by hashes.

  With equal chances either the argument or the type changes, each alternative
  with the same chance:
    argument: a click, a long press or typing at a point moves to the middle of
      another element that takes clicks or text (of any element, if there is
      none); that element does not contain the point, and the element at the
      point does not contain its middle. A scroll changes its direction;
      open_app opens another app of APPS;
    type: another one of navigate_back, navigate_home, wait, scroll (in a drawn
      direction) and click (on a drawn element). An action without an argument
      to change always changes its type.

  Args:
    key: identifies the step and the seed.
    action: the demonstrated action.
    elements: elements of the screen.
  """
  others = _with_another_argument(key, action, elements)
  if others and seeded_draws.draw_index(f'{key}/what', 2):
    return seeded_draws.draw(f'{key}/argument', others)
  return seeded_draws.draw(
    f'{key}/type', _of_another_type(key, action, elements)
  )


def step_accuracy(
  prompts: Sequence[str],
  responses: Sequence[str],
  references: Sequence[Sequence[str]],
) -> list[float]:
  """Judges actions: 100 if equivalent to a demonstrated action, else 0.

  Type and text must be the same, ignoring case. A point must lie on the
  smallest element of the screen that contains the demonstrated point; if the
  prompt shows no such element, the points must be equal.

  Args:
    prompts: prompts, which show the screens.
    responses: actions to judge.
    references: one or several demonstrated actions for each response.
  """
  rows = zip(prompts, responses, references, strict=True)
  return [
    100.0 * any(_is_same(prompt, response, action) for action in actions)
    for prompt, response, actions in rows
  ]


def _with_another_argument(
  key: str, action: Action, elements: Elements
) -> list[Action]:
  match action['action_type']:
    case 'click' | 'long_press' | 'type':
      point = action['x'], action['y']
      target = android_screens.find_target(elements, *point)
      others = [each for each in elements if not each.holds(*point)]
      if target:
        others = [each for each in others if not target.holds(*each.center)]
      touchable = [each for each in others if each.is_interactive]
      return [{**action, **_at(each)} for each in touchable or others]
    case 'scroll':
      others = [each for each in _DIRECTIONS if each != action['direction']]
      return [{**action, 'direction': each} for each in others]
    case 'open_app':
      name = action['app_name'].casefold()
      others = [app for app in APPS if app.casefold() != name]
      return [{**action, 'app_name': each} for each in others]
  return []


def _of_another_type(
  key: str, action: Action, elements: Elements
) -> list[Action]:
  direction = seeded_draws.draw(f'{key}/direction', _DIRECTIONS)
  candidates = [
    {'action_type': 'navigate_back'},
    {'action_type': 'navigate_home'},
    {'action_type': 'wait'},
    {'action_type': 'scroll', 'direction': direction},
  ]
  touchable = [each for each in elements if each.is_interactive] or elements
  if touchable:
    element = seeded_draws.draw(f'{key}/element', touchable)
    candidates.append({'action_type': 'click', **_at(element)})
  demonstrated = action['action_type']
  return [each for each in candidates if each['action_type'] != demonstrated]


def _at(element: android_screens.Element) -> dict[str, int]:
  x, y = element.center
  return {'x': x, 'y': y}


def _is_same(prompt: str, response: str, demonstrated: str) -> bool:
  kind, point, text = _parts(response)
  its_kind, its_point, its_text = _parts(demonstrated)
  if (kind, text) != (its_kind, its_text):
    return False
  if point == its_point:
    return True
  return bool(point and its_point) and _share_element(prompt, point, its_point)


def _parts(action: str) -> tuple[str, tuple[int, int] | None, str]:
  """Returns type, point and text of an action that is given as a line."""
  kind, _, rest = action.strip().partition(' ')
  point = None
  if 'point' in _PARAMETERS.get(kind, ()):
    match = _POINT.match(rest.strip())
    if match:
      point = int(match[1]), int(match[2])
      rest = rest.strip()[match.end() :]
  return kind, point, ' '.join(rest.split()).casefold()


def _share_element(
  prompt: str, point: tuple[int, int], demonstrated: tuple[int, int]
) -> bool:
  """Whether the smallest element at `demonstrated` also contains `point`."""
  elements = [
    android_screens.Element('', '', tuple(map(int, bounds)), False)
    for bounds in _BOUNDS.findall(prompt)
  ]
  target = android_screens.find_target(elements, *demonstrated)
  return target is not None and target.holds(*point)
