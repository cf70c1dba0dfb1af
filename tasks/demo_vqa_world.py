"""A small world of pictures and questions about them, with right answers.

A picture shows one to three coloured shapes on a grey background, each in its
own quarter. Questions and answers are short:

  color   color of the square?       red        color at top left?
  shape   shape of the red one?      circle     shape at top left?
  place   where is the circle?       top left   where is the red one?
  total   how many shapes?           2
  count   how many circles?          1

Every question has exactly one right answer, which only the picture determines.
Colors, shapes and places are exchangeable, and all answers of a kind are
equally frequent, so that a model that does not see the picture can only guess.
The same holds for wrong answers, so that an answer without its picture does not
reveal whether it is right.

Every example is a function of (seed, stream, split, index) alone, as in
`demo_world`. Splits never share a scene: a hash assigns 80% of all scenes to
train and 10% each to validation and test. For two or three things, the hash
depends on shapes, colors and quarters, so that no such arrangement is in two
splits. For one thing there are only 60 arrangements, so the split also depends
on its size and exact place.

Shapes have a border, and the background is the grey that a model reads as zero.
Both help a tiny model with random weights to learn shapes and places quickly.
"""

from collections.abc import Iterator, Sequence
import functools
import itertools
import random
import struct
from typing import NamedTuple
import zlib

import numpy as np

from tasks import demo_world
from tasks import stable_random

SHAPES = ('circle', 'square', 'triangle')
COLORS = {
  'red': (222, 45, 38),
  'green': (44, 160, 44),
  'blue': (49, 104, 216),
  'yellow': (247, 195, 20),
  'white': (250, 250, 250),
}
# Row by row, so that a place's number determines its row and column.
PLACES = ('top left', 'top right', 'bottom left', 'bottom right')
MAX_THINGS = 3
# The answers of each kind of question, all equally frequent.
ANSWERS = {
  'color': tuple(COLORS),
  'shape': SHAPES,
  'place': PLACES,
  'total': ('1', '2', '3'),
  'count': ('1', '2', '3'),
}
SPLITS = demo_world.SPLITS
IMAGE_SIZE = 32
MAX_PROMPT_BYTES = 24
MAX_RESPONSE_BYTES = 12
RIGHT_RATE = 0.7

_CELL = IMAGE_SIZE // 2
# Sizes and places in a quarter, with a margin of one pixel.
_BOXES = tuple(
  (size, top, left)
  for size in (12, 13)
  for top, left in itertools.product(range(1, _CELL - size), repeat=2)
)
_BORDER = 1.5  # Pixels.
_BORDER_COLOR = (24, 24, 28)
_GROUND = (128, 128, 128)
_LEVELS = 4  # A shape's coverage of a pixel is stored in quarters.
_SUPERSAMPLING = 4
_KIND_WEIGHTS = (
  *(('color', 0.25), ('shape', 0.25), ('place', 0.25)),
  *(('total', 0.15), ('count', 0.1)),
)
_TOTAL_WEIGHTS = ((1, 0.4), (2, 0.4), (3, 0.2))


class Thing(NamedTuple):
  """A coloured shape at a place.

  Attributes:
    place: quarter of the picture.
    shape: one of `SHAPES`.
    color: one of `COLORS`.
    size: pixels per side.
    top: pixels from the upper edge of the quarter.
    left: pixels from the left edge of the quarter.
  """

  place: str
  shape: str
  color: str
  size: int
  top: int
  left: int


# The things of a picture, in the order of `PLACES`.
Scene = tuple[Thing, ...]


class Question(NamedTuple):
  """A question about a scene: its kind, text and right answer."""

  kind: str
  text: str
  answer: str


def gold_score(references: Sequence[str], response: str) -> float:
  """Judges a response: 100 if it is one of the right answers, else 0.

  Only surrounding spaces are ignored.
  """
  return 100.0 if response.strip() in references else 0.0


def split_of(scene: Scene) -> str:
  """Returns the only split of a scene, see the module's docstring."""
  arrangement = [thing[:3] for thing in scene]
  if len(arrangement) > 1:
    return _split_of_number(_hash(arrangement))
  # Added to the hash, so that each split has scenes of every arrangement.
  number = _BOXES.index(scene[0][3:])
  return _split_of_number(_hash(arrangement) + number)


def questions(scene: Scene, kind: str) -> Iterator[Question]:
  """Yields all questions of a kind with one right answer for this scene.

  A question names a thing by its shape or color only if that is unique.
  """
  shapes = [thing.shape for thing in scene]
  colors = [thing.color for thing in scene]
  if kind == 'total':
    yield Question(kind, 'how many shapes?', str(len(scene)))
  elif kind == 'count':
    for shape in dict.fromkeys(shapes):
      yield Question(kind, f'how many {shape}s?', str(shapes.count(shape)))
  else:
    start = 'where is' if kind == 'place' else f'{kind} of'
    for thing in scene:
      answer = getattr(thing, kind)
      if kind != 'place':
        yield Question(kind, f'{kind} at {thing.place}?', answer)
      if kind != 'shape' and shapes.count(thing.shape) == 1:
        yield Question(kind, f'{start} the {thing.shape}?', answer)
      if kind != 'color' and colors.count(thing.color) == 1:
        yield Question(kind, f'{start} the {thing.color} one?', answer)


def sample_scene(rng: random.Random, split: str) -> Scene:
  """Draws a scene of a split."""
  total = stable_random.weighted(rng, _TOTAL_WEIGHTS)
  arrangement = stable_random.choice(rng, _arrangements(total)[split])
  while True:
    scene = tuple(
      Thing(*x, *stable_random.choice(rng, _BOXES)) for x in arrangement
    )
    if split_of(scene) == split:
      return scene


def sample_question(rng: random.Random, split: str) -> tuple[Scene, Question]:
  """Draws a question and its scene.

  The answer is drawn first and does not depend on the question's text.
  """
  kind = stable_random.weighted(rng, _KIND_WEIGHTS)
  answer = stable_random.choice(rng, ANSWERS[kind])
  while True:
    scene = sample_scene(rng, split)
    found = [q for q in questions(scene, kind) if q.answer == answer]
    if found:
      return scene, stable_random.choice(rng, found)


def sample_wrong(rng: random.Random, scene: Scene, question: Question) -> str:
  """Draws a wrong answer of the question's kind.

  Half of the time it is the right answer for another thing of the scene, if
  there is one, so that a model must look at the right thing.
  """
  kind, right = question.kind, question.answer
  wrong = [answer for answer in ANSWERS[kind] if answer != right]
  if kind in Thing._fields and rng.random() < 0.5:
    shown = {getattr(thing, kind) for thing in scene}
    wrong = [answer for answer in wrong if answer in shown] or wrong
  return stable_random.choice(rng, wrong)


def sample_demonstration(
  rng: random.Random, scene: Scene, question: Question
) -> str:
  """Draws an answer of an imperfect writer, right with `RIGHT_RATE`."""
  if rng.random() < RIGHT_RATE:
    return question.answer
  return sample_wrong(rng, scene, question)


def draw(scene: Scene) -> bytes:
  """Draws a scene as a PNG of 32x32 pixels with a palette."""
  pixels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
  for place, shape, color, size, top, left in scene:
    row, column = divmod(PLACES.index(place), 2)
    top, left = top + row * _CELL, left + column * _CELL
    border, inside = _sprite(shape, size)
    first = np.uint8((1 + list(COLORS).index(color)) * _LEVELS)
    cells = pixels[top : top + size, left : left + size]
    cells[...] = np.where(inside > 0, inside + first, border)
  # Each row starts with the number of its filter, 0 for none.
  rows = np.pad(pixels, ((0, 0), (1, 0))).tobytes()
  return _PNG_START + _chunk(b'IDAT', zlib.compress(rows)) + _PNG_END


def _hash(arrangement: Sequence[tuple]) -> int:
  return zlib.crc32(', '.join(' '.join(x) for x in arrangement).encode())


def _split_of_number(number: int) -> str:
  bucket = number % 10
  return 'train' if bucket < 8 else SPLITS[bucket - 7]


@functools.cache
def _arrangements(total: int) -> dict[str, list[tuple]]:
  """Returns place, shape and color of the things of all scenes, by split."""
  found = {split: [] for split in SPLITS}
  looks = list(itertools.product(SHAPES, COLORS))
  for places in itertools.combinations(PLACES, total):
    for chosen in itertools.product(looks, repeat=total):
      things = tuple((p, *look) for p, look in zip(places, chosen, strict=True))
      splits = SPLITS if total == 1 else [_split_of_number(_hash(things))]
      for split in splits:
        found[split].append(things)
  return found


@functools.cache
def _sprite(shape: str, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns a shape's coverage of each pixel, with and without its border.

  Returns:
    Two arrays [size, size] of 0 to `_LEVELS`.
  """
  fine = size * _SUPERSAMPLING
  y, x = (np.mgrid[:fine, :fine] + 0.5) / _SUPERSAMPLING
  aside = abs(x - size / 2)
  # Distance from the outline inwards, in pixels.
  depth = {
    'circle': size / 2 - np.hypot(aside, y - size / 2),
    'square': np.minimum(size / 2 - aside, size / 2 - abs(y - size / 2)),
    'triangle': np.minimum(size - y, (y / 2 - aside) / np.hypot(1, 0.5)),
  }[shape]
  return _coverage(depth > 0), _coverage(depth > _BORDER)


def _coverage(inside: np.ndarray) -> np.ndarray:
  size = len(inside) // _SUPERSAMPLING
  pixels = inside.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING)
  return np.round(pixels.mean((1, 3)) * _LEVELS).astype(np.uint8)


def _palette() -> bytes:
  """Returns the colors: background, border over it, each color over border."""
  over = [(_BORDER_COLOR, _GROUND)]
  over += [(color, _BORDER_COLOR) for color in COLORS.values()]
  rows = [np.array(_GROUND)]
  for above, below in np.array(over):
    for level in range(1, _LEVELS + 1):
      rows.append(below + (above - below) * level / _LEVELS)
  return np.round(rows).astype(np.uint8).tobytes()


def _chunk(name: bytes, content: bytes) -> bytes:
  """Returns a PNG chunk, see https://www.w3.org/TR/png-3/#5Chunk-layout."""
  checksum = struct.pack('>I', zlib.crc32(name + content))
  return struct.pack('>I', len(content)) + name + content + checksum


# Eight bits per pixel, which index the palette; not interlaced.
_HEADER = struct.pack('>IIBBBBB', IMAGE_SIZE, IMAGE_SIZE, 8, 3, 0, 0, 0)
_PNG_START = (
  b'\x89PNG\r\n\x1a\n' + _chunk(b'IHDR', _HEADER) + _chunk(b'PLTE', _palette())
)
_PNG_END = _chunk(b'IEND', b'')
