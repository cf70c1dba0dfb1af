"""Draws the images and writes the TFRecord files of the fixtures.

`python -m tests.tasks.make_fixtures` from the root of the repository; the files
are committed. The JSON files beside them are written by hand. Everything is
invented, in the formats of the data sets.
"""

import json
import pathlib

import numpy as np
import tensorflow as tf

from tasks import android_screens

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
RED, BLUE, YELLOW, GREY = (200, 30, 30), (0, 0, 220), (230, 220, 0), (210,) * 3


def canvas(height, width, color=WHITE):
  return np.full((height, width, 3), color, np.uint8)


def paint(pixels, left, top, right, bottom, color):
  pixels[top:bottom, left:right] = color
  return pixels


def paint_disc(pixels, x, y, radius, color):
  rows, columns = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
  pixels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = color
  return pixels


def save(path, pixels):
  path = FIXTURES / path
  path.parent.mkdir(parents=True, exist_ok=True)
  is_png = path.suffix == '.png'
  encode = tf.io.encode_png if is_png else tf.io.encode_jpeg
  path.write_bytes(encode(pixels).numpy())


def draw_vqav2():
  """Fields and skies: no photographs, but JPEG files."""
  for image_set, number, ground in (
    ('train2014', 9, RED),
    ('train2014', 25, GREY),
    ('train2014', 14, YELLOW),
    ('val2014', 42, BLUE),
  ):
    pixels = paint(canvas(30, 40, (140, 190, 240)), 0, 15, 40, 30, ground)
    name = f'vqav2/vqav2/{image_set}/COCO_{image_set}_{number:012d}.jpg'
    save(name, pixels)


def draw_easy_vqa():
  folder = 'easy_vqa/easy-vqa'
  for name, pixels in (
    ('train/images/0', paint(canvas(64, 64), 10, 20, 40, 50, BLUE)),
    ('train/images/1', paint_disc(canvas(64, 64), 30, 30, 16, RED)),
    ('train/images/15', paint_disc(canvas(64, 64), 40, 20, 12, BLACK)),
    ('test/images/0', paint(canvas(64, 64), 5, 5, 25, 50, YELLOW)),
  ):
    save(f'{folder}/{name}.png', pixels)


def draw_nlvr():
  """Three grey boxes beside one another, with shapes in them."""
  for part, directory, identifier, color in (
    ('train', 3, '11-0', YELLOW),
    ('train', 3, '12-1', BLACK),
    ('dev', 0, '21-0', BLUE),
    ('test', 1, '31-2', YELLOW),
  ):
    pixels = canvas(100, 400)
    for left in (0, 150, 300):
      paint(pixels, left, 0, left + 100, 100, GREY)
      paint(pixels, left + 20, 60, left + 40, 80, color)
    name = f'nlvr/nlvr/{part}/images/{directory}/{part}-{identifier}-0.png'
    save(name, pixels)


def make_tree(*windows):
  """A serialised forest of windows, each a type and its nodes.

  A node is class, text, description, bounds, and names of what is true of it.
  """
  forest = android_screens.Forest()
  for window_type, *nodes in windows:
    window = forest.windows.add(window_type=window_type)
    for kind, text, description, bounds, *flags in nodes:
      node = window.tree.nodes.add(
        class_name=f'android.widget.{kind}',
        text=text,
        content_description=description,
      )
      for flag in flags:
        setattr(node, flag, True)
      box = node.bounds_in_screen
      box.left, box.top, box.right, box.bottom = bounds
  return forest.SerializeToString()


def make_episode(number, goal, *, screens, actions, instructions, size):
  """A serialised episode; the screens are trees."""
  width, height = size
  screenshots = [
    tf.io.encode_png(
      paint(canvas(height, width), 0, 0, width, 10 + 5 * index, BLUE)
    ).numpy()
    for index in range(len(screens))
  ]
  bytes_lists = {
    'goal': [goal.encode()],
    'screenshots': screenshots,
    'accessibility_trees': screens,
    'actions': [json.dumps(action).encode() for action in actions],
    'step_instructions': [text.encode() for text in instructions],
  }
  int_lists = {
    'episode_id': [number],
    'screenshot_widths': [width] * len(screens),
    'screenshot_heights': [height] * len(screens),
  }
  example = tf.train.Example()
  for name, values in bytes_lists.items():
    example.features.feature[name].bytes_list.value.extend(values)
  for name, values in int_lists.items():
    example.features.feature[name].int64_list.value.extend(values)
  return example.SerializeToString()


VISIBLE, CLICKABLE = 'is_visible_to_user', 'is_clickable'
CLOCK = ('TextView', '9:41', '9:41 AM', (10, 0, 60, 20), VISIBLE)
HOME = make_tree(
  (1, ('TextView', 'Notes', '', (20, 40, 80, 90), VISIBLE, CLICKABLE)),
  (3, CLOCK),
)
NOTES = make_tree(
  (3, CLOCK),
  (
    1,
    ('FrameLayout', '', '', (0, 20, 360, 780), VISIBLE),
    ('ImageButton', '', 'New note', (300, 700, 350, 750), VISIBLE, CLICKABLE),
    ('TextView', 'Buy tea', '', (10, 40, 350, 90), VISIBLE, CLICKABLE),
    ('TextView', 'Call Ada', '', (10, 100, 350, 150), VISIBLE, CLICKABLE),
    ('TextView', 'Hidden', '', (10, 900, 350, 950), CLICKABLE),
    ('EditText', '', '', (10, 160, 350, 210), VISIBLE, 'is_editable'),
  ),
)


def write_android_control():
  folder = FIXTURES / 'android_control' / 'android_control'
  folder.mkdir(parents=True, exist_ok=True)
  train = make_episode(
    5,
    'Open Notes and read the note\non tea',
    screens=[HOME, NOTES, NOTES, NOTES],
    actions=[
      {'action_type': 'open_app', 'app_name': 'Notes'},
      {'action_type': 'wait'},
      {'action_type': 'click', 'x': 180, 'y': 65},
    ],
    instructions=['Open the Notes app', 'Open the Notes app', ''],
    size=(360, 800),  # Higher than 768 pixels.
  )
  validation = make_episode(
    6,
    'See older notes',
    screens=[NOTES, NOTES],
    actions=[{'action_type': 'scroll', 'direction': 'down'}],
    instructions=['Scroll down'],
    size=(180, 400),
  )
  test = make_episode(
    7,
    'Write a note on milk',
    screens=[NOTES, NOTES, NOTES],
    actions=[
      {'action_type': 'click', 'x': 325, 'y': 725},
      {'action_type': 'input_text', 'text': 'Milk'},
    ],
    instructions=['Click the plus sign', 'Write Milk'],
    size=(180, 400),
  )
  shards = ([train, validation], [test])
  for index, records in enumerate(shards):
    path = folder / f'android_control-{index:05d}-of-{len(shards):05d}'
    with tf.io.TFRecordWriter(str(path), 'GZIP') as writer:
      for record in records:
        writer.write(record)


if __name__ == '__main__':
  draw_vqav2()
  draw_easy_vqa()
  draw_nlvr()
  write_android_control()
