from collections import Counter
import re
import zlib

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tasks import demo_vqa_world as world
from tasks import demo_world

SPLIT = st.sampled_from(world.SPLITS)
INDEX = st.integers(0, 10**6)


def rng_of(index, split='train', stream='test'):
  return demo_world.example_rng(0, stream, split, index)


def pixels_of(png):
  return tf.io.decode_image(png, channels=3, expand_animations=False).numpy()


def look(pixels):
  """Reads a picture: {place: (shape, color)}."""
  seen = {}
  for number, place in enumerate(world.PLACES):
    row, column = divmod(number, 2)
    cell = pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
    colors = [
      name
      for name, rgb in world.COLORS.items()
      if (cell == np.array(rgb)).all(-1).any()
    ]
    drawn = (cell != pixels[0, 0]).any(-1)
    if not drawn.any():
      assert not colors
      continue
    (color,) = colors
    ys, xs = np.nonzero(drawn)
    box = drawn[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    assert max(box.shape) <= 13
    if box.all():
      shape = 'square'
    else:
      # Of a triangle, both lower corners are drawn.
      shape = 'triangle' if box[-1].all() else 'circle'
    seen[place] = shape, color
  return seen


def answer(seen, question):
  """Answers a question about what was seen; fails if it is ambiguous."""
  things = [(place, *thing) for place, thing in seen.items()]
  words = re.findall(r'\w+', question)
  if question.startswith('how many'):
    (noun,) = words[2:]
    chosen = [x for x in things if noun in ('shapes', x[1] + 's')]
    return str(len(chosen))
  asked = {'where': 0, 'shape': 1, 'color': 2}[words[0]]
  if words[1] == 'at':
    wanted = ' '.join(words[2:])
  else:
    wanted = words[3]
  (thing,) = [x for x in things if wanted in x]
  return thing[asked]


@hypothesis.given(index=INDEX, split=SPLIT)
def test_the_picture_decides_the_answer(index, split):
  rng = rng_of(index, split)
  scene, question = world.sample_question(rng, split)
  pixels = pixels_of(world.draw(scene))
  assert pixels.shape == (world.IMAGE_SIZE, world.IMAGE_SIZE, 3)
  seen = look(pixels)
  assert seen == {x.place: (x.shape, x.color) for x in scene}
  assert answer(seen, question.text) == question.answer
  asked = [q for kind in world.ANSWERS for q in world.questions(scene, kind)]
  assert question in asked
  assert len({q.text for q in asked}) == len(asked) >= 6
  for q in asked:
    assert answer(seen, q.text) == q.answer
    assert q.answer in world.ANSWERS[q.kind]
    assert len(q.text.encode()) <= world.MAX_PROMPT_BYTES
    assert len(q.answer.encode()) <= world.MAX_RESPONSE_BYTES


@hypothesis.given(index=INDEX, split=SPLIT)
def test_examples_depend_on_their_index_only(index, split):
  def sample():
    rng = rng_of(index, split)
    scene, question = world.sample_question(rng, split)
    said = world.sample_demonstration(rng, scene, question)
    return scene, question, world.draw(scene), said

  assert sample() == sample()
  scene, question, _, _ = sample()
  assert world.split_of(scene) == split
  wrong = world.sample_wrong(rng_of(index), scene, question)
  assert wrong in world.ANSWERS[question.kind]
  assert world.gold_score([question.answer], wrong) == 0
  assert world.gold_score([question.answer], question.answer) == 100


def test_scenes_are_many_and_their_splits_fit():
  scenes = {}
  for split in world.SPLITS:
    for index in range(500):
      scene = world.sample_scene(rng_of(index, split), split)
      assert scenes.setdefault(scene, split) == split
  assert len(scenes) > 1000
  counts = Counter(len(scene) for scene in scenes)
  assert set(counts) == {1, 2, 3}
  # Where several things are, another arrangement of boxes changes nothing.
  for scene, split in scenes.items():
    if len(scene) > 1:
      moved = tuple(x._replace(size=12, top=1, left=1) for x in scene)
      assert world.split_of(moved) == split


def test_no_two_things_touch():
  for index in range(200):
    pixels = pixels_of(world.draw(world.sample_scene(rng_of(index), 'train')))
    drawn = (pixels != pixels[0, 0]).any(-1)
    for line in (0, 15, 16, 31):
      assert not drawn[line].any()
      assert not drawn[:, line].any()


@pytest.mark.parametrize(
  ('response', 'score'),
  [
    ('top left', 100),
    (' top left\n', 100),
    ('left top', 100),
    ('top', 0),
    ('Top left', 0),
    ('top left top left', 0),
    ('topleft', 0),
    ('', 0),
  ],
)
def test_gold_scores(response, score):
  assert world.gold_score(['top left', 'left top'], response) == score


@pytest.fixture(scope='module')
def many():
  """(question, wrong answer) of many scenes."""
  rows = []
  for index in range(6000):
    rng = rng_of(index)
    scene, question = world.sample_question(rng, 'train')
    rows.append((question, world.sample_wrong(rng, scene, question)))
  return rows


def test_the_question_alone_tells_nothing_about_the_answer(many):
  by_text = {}
  for question, _ in many[:4000]:
    by_text.setdefault(question.text, Counter())[question.answer] += 1
  hits, chance = {}, {}
  for question, _ in many[4000:]:
    best = by_text[question.text].most_common(1)[0][0]
    hits.setdefault(question.kind, []).append(best == question.answer)
    chance[question.kind] = 1 / len(world.ANSWERS[question.kind])
  assert set(hits) == set(world.ANSWERS)
  for kind, right in hits.items():
    spread = 4 * (chance[kind] / len(right)) ** 0.5
    assert abs(np.mean(right) - chance[kind]) < spread, kind


def test_without_its_picture_an_answer_does_not_tell_whether_it_is_right(many):
  votes = Counter()
  for question, wrong in many[:4000]:
    votes[question.text, question.answer] += 1
    votes[question.text, wrong] -= 1
  right = [
    votes[q.text, q.answer] > votes[q.text, wrong] for q, wrong in many[4000:]
  ]
  assert 0.45 < np.mean(right) < 0.55


def test_demonstrations_are_right_as_often_as_they_say():
  right = []
  for index in range(2000):
    rng = rng_of(index)
    scene, question = world.sample_question(rng, 'train')
    said = world.sample_demonstration(rng, scene, question)
    assert said in world.ANSWERS[question.kind]
    right.append(said == question.answer)
  assert np.mean(right) == pytest.approx(world.RIGHT_RATE, abs=0.04)


def test_wrong_answers_are_often_right_of_another_thing():
  shown = []
  for index in range(2000):
    rng = rng_of(index)
    scene, question = world.sample_question(rng, 'train')
    colors = {thing.color for thing in scene}
    if question.kind == 'color' and len(colors) == 2:
      wrong = world.sample_wrong(rng, scene, question)
      shown.append(wrong in colors)
  # By chance one in four.
  assert np.mean(shown) == pytest.approx(0.5 + 0.5 / 4, abs=0.15)


def test_the_world_does_not_change_between_releases():
  rng = rng_of(0, 'test')
  scene, question = world.sample_question(rng, 'test')
  pixels = pixels_of(world.draw(scene))
  assert scene == (
    world.Thing('top left', 'square', 'red', 12, 1, 2),
    world.Thing('top right', 'circle', 'yellow', 13, 1, 1),
    world.Thing('bottom right', 'triangle', 'blue', 12, 2, 1),
  )
  assert question == ('place', 'where is the blue one?', 'bottom right')
  # Of the pixels and not of the file: zlib may compress better one day.
  assert zlib.crc32(pixels.tobytes()) == 912321052
