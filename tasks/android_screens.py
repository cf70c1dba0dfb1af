"""Screens of AndroidControl: accessibility trees as text, smaller screenshots.

A tree is a serialised message `AndroidAccessibilityForest` of android_env's
schema, https://github.com/google-deepmind/android_env, folder
`android_env/proto/a11y`, Apache-2.0. This module declares only the fields that
it reads, with the names and numbers of that schema; unknown fields are skipped.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message
from google.protobuf import message_factory
import tensorflow as tf

from perlhf_jax.data import image_headers

# Maximum length of a screenshot's longer side, in pixels, and the JPEG quality
# of shrunk screenshots.
MAX_SIDE = 768
JPEG_QUALITY = 90
# Limits of the part of a screen that goes into a prompt.
MAX_ELEMENTS = 80
MAX_TEXT = 60

_SYSTEM_WINDOW = 3  # WindowType.TYPE_SYSTEM: status bar, notifications.

# Maps messages to fields to (number, type, whether it is repeated).
_SCHEMA: Mapping[str, Mapping[str, tuple[int, str, bool]]] = {
  'ProtoRect': {
    'left': (1, 'int32', False),
    'top': (2, 'int32', False),
    'right': (3, 'int32', False),
    'bottom': (4, 'int32', False),
  },
  'AndroidAccessibilityNodeInfo': {
    'bounds_in_screen': (2, 'ProtoRect', False),
    'class_name': (3, 'string', False),
    'content_description': (4, 'string', False),
    'hint_text': (5, 'string', False),
    'text': (7, 'string', False),
    'is_checkable': (12, 'bool', False),
    'is_clickable': (14, 'bool', False),
    'is_editable': (15, 'bool', False),
    'is_long_clickable': (19, 'bool', False),
    'is_visible_to_user': (23, 'bool', False),
  },
  'AndroidAccessibilityTree': {
    'nodes': (1, 'AndroidAccessibilityNodeInfo', True),
  },
  'AndroidAccessibilityWindowInfo': {
    'window_type': (6, 'int32', False),  # An enum, encoded like int32.
    'tree': (11, 'AndroidAccessibilityTree', False),
  },
  'AndroidAccessibilityForest': {
    'windows': (1, 'AndroidAccessibilityWindowInfo', True),
  },
}


@dataclasses.dataclass(frozen=True)
class Element:
  """An element of a screen that users can see or touch.

  Attributes:
    kind: last part of the class name, such as Button.
    label: text, description and hint, without repetitions.
    bounds: left, top, right and bottom in device pixels.
    is_interactive: whether the element takes clicks or text.
  """

  kind: str
  label: str
  bounds: tuple[int, int, int, int]
  is_interactive: bool

  @property
  def center(self) -> tuple[int, int]:
    """The middle of the element, x and y."""
    left, top, right, bottom = self.bounds
    return (left + right) // 2, (top + bottom) // 2

  @property
  def area(self) -> int:
    """Area in square pixels."""
    left, top, right, bottom = self.bounds
    return (right - left) * (bottom - top)

  def holds(self, x: int, y: int) -> bool:
    """Whether a point lies on the element."""
    left, top, right, bottom = self.bounds
    return left <= x <= right and top <= y <= bottom

  def __str__(self):
    label = f'"{self.label}" ' * bool(self.label)
    return f'{self.kind} {label}{",".join(map(str, self.bounds))}'


def _message_classes() -> dict[str, type[message.Message]]:
  """Makes the message classes, in a pool separate from android_env's."""
  field_type = descriptor_pb2.FieldDescriptorProto
  package = 'perlhf_jax.tasks'
  file = descriptor_pb2.FileDescriptorProto(
    name='perlhf_jax/tasks/android_screens.proto',
    package=package,
    syntax='proto3',
  )
  for name, fields in _SCHEMA.items():
    declared = file.message_type.add(name=name)
    for field, (number, kind, is_repeated) in fields.items():
      added = declared.field.add(name=field, number=number)
      added.label = (
        field_type.LABEL_REPEATED if is_repeated else field_type.LABEL_OPTIONAL
      )
      if kind in _SCHEMA:
        added.type, added.type_name = (
          field_type.TYPE_MESSAGE,
          f'.{package}.{kind}',
        )
      else:
        added.type = field_type.Type.Value(f'TYPE_{kind.upper()}')
  pool = descriptor_pool.DescriptorPool()
  pool.AddSerializedFile(file.SerializeToString())
  return {
    name: message_factory.GetMessageClass(
      pool.FindMessageTypeByName(f'{package}.{name}')
    )
    for name in _SCHEMA
  }


# The message class of a tree, with the fields of `_SCHEMA`.
Forest: Any = _message_classes()['AndroidAccessibilityForest']


def find_elements(tree: bytes) -> list[Element]:
  """Returns the visible elements of a screen that have text or take input.

  Elements of system windows (the status bar) come first, the others in the
  order of the tree. If there are more than MAX_ELEMENTS, the last ones are
  returned, since the loader also keeps the end of a prompt.

  Args:
    tree: a serialised AndroidAccessibilityForest.

  Raises:
    ValueError: `tree` is something else.
  """
  try:
    forest = Forest.FromString(tree)
  except message.DecodeError as error:
    raise ValueError(
      f'an accessibility tree cannot be decoded ({error})'
    ) from error
  windows = sorted(
    forest.windows, key=lambda window: window.window_type != _SYSTEM_WINDOW
  )
  found = [
    _element(node)
    for window in windows
    for node in window.tree.nodes
    if node.is_visible_to_user
  ]
  return [element for element in found if _is_worth_a_line(element)][
    -MAX_ELEMENTS:
  ]


def find_target(elements: Sequence[Element], x: int, y: int) -> Element | None:
  """Returns the smallest element that contains a point; None without any."""
  targets = [each for each in elements if each.holds(x, y)]
  return min(targets, key=lambda each: each.area, default=None)


def _element(node: Any) -> Element:
  texts = (node.text, node.content_description, node.hint_text)
  texts = [' '.join(text.split()) for text in texts]
  box = node.bounds_in_screen
  return Element(
    kind=node.class_name.rpartition('.')[2] or 'View',
    label=_shorten(' / '.join(dict.fromkeys(filter(None, texts)))),
    bounds=(box.left, box.top, box.right, box.bottom),
    is_interactive=(
      node.is_clickable
      or node.is_long_clickable
      or node.is_checkable
      or node.is_editable
    ),
  )


def _shorten(text: str) -> str:
  return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + '...'


def _is_worth_a_line(element: Element) -> bool:
  left, top, right, bottom = element.bounds
  is_somewhere = left < right and top < bottom
  return is_somewhere and bool(element.label or element.is_interactive)


def shrink(image: bytes) -> bytes:
  """Returns a screenshot of at most MAX_SIDE pixels on its longer side.

  A larger image is scaled down by averaging areas, and becomes a JPEG. Other
  images are returned unchanged.

  Args:
    image: an encoded PNG or JPEG.

  Raises:
    ValueError: the image cannot be decoded.
  """
  if problem := image_headers.find_problem(image):
    raise ValueError(f'a screenshot {problem}')
  try:
    pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
  except tf.errors.OpError as error:
    reason = str(error.message).splitlines()[0]
    raise ValueError(f'a screenshot cannot be decoded ({reason})') from error
  height, width = pixels.shape[:2]
  scale = MAX_SIDE / max(height, width)
  if scale >= 1:
    return image
  size = [max(1, round(height * scale)), max(1, round(width * scale))]
  smaller = tf.image.resize(pixels, size, method='area')
  smaller = tf.cast(tf.round(smaller), tf.uint8)
  return tf.io.encode_jpeg(smaller, quality=JPEG_QUALITY).numpy()
