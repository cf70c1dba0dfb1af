from collections import Counter
import random

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from perlhf_jax.core import errors
from tasks import demo_world

PROMPT = 'todo: gym Rent tea Call bus'
SPLIT = st.sampled_from(demo_world.SPLITS)
INDEX = st.integers(0, 10**6)


def rng_of(index, split='train', stream='test'):
  return demo_world.example_rng(0, stream, split, index)


def slow_score(prompt, response):
  """The rule once more, by counting."""
  entries = prompt.split()[1:]
  urgent = {entry.lower() for entry in entries if entry[0].isupper()}
  plain = {entry for entry in entries if entry.lower() not in urgent}
  if response.strip() == '':
    return 0.0
  counts = Counter(part.strip() for part in response.split(','))
  points = 0.0
  for name, count in counts.items():
    if name in urgent:
      points += 1 - 0.5 * (count - 1)
    elif name in plain:
      points -= 0.5 * count
    else:
      points -= count
  return max(points, 0.0) / len(urgent) * 100


@pytest.mark.parametrize(
  ('response', 'score'),
  [
    ('rent, call', 100),
    ('call,rent', 100),
    (' rent ,  call ', 100),
    ('rent', 50),
    ('rent, call, gym', 75),
    ('rent, gym', 25),
    ('rent, rent', 25),
    ('rent, call, call', 75),
    ('rent, jam', 0),
    ('rent, call, jam', 50),
    ('rent call', 0),
    ('Rent, call', 0),
    ('rent, call,', 50),
    ('rent, call, gym, tea, bus', 25),
    ('', 0),
    ('  ', 0),
    (',,,,', 0),
    ('\x00\x01 ?!', 0),
  ],
)
def test_worked_examples(response, score):
  assert demo_world.gold_score(PROMPT, response) == pytest.approx(score)


NAME = st.sampled_from([*demo_world.LEXICON[:8], '', 'x', ' gym', 'rent '])


@hypothesis.given(names=st.lists(NAME, max_size=7), index=INDEX)
def test_scores_against_counting(names, index):
  note = demo_world.sample_note(rng_of(index))
  names = [*note.words[:2], *names]
  response = ', '.join(names)
  score = demo_world.gold_score(note.prompt, response)
  assert score == pytest.approx(slow_score(note.prompt, response))
  assert 0 <= score <= 100
  shuffled = random.Random(index).sample(names, len(names))
  assert score == pytest.approx(
    demo_world.gold_score(note.prompt, ','.join(shuffled))
  )


@hypothesis.given(index=INDEX, junk=st.text(max_size=12))
def test_only_the_urgent_words_score_full(index, junk):
  note = demo_world.sample_note(rng_of(index))
  perfect = ', '.join(note.urgent_words)
  assert demo_world.gold_score(note.prompt, perfect) == 100
  for word in note.other_words:
    assert demo_world.gold_score(note.prompt, f'{perfect}, {word}') < 100
  assert demo_world.gold_score(note.prompt, f'{perfect}, {junk}') < 100


def test_prompts_of_other_worlds_are_refused():
  for prompt in ('', 'todo:', 'todo: gym tea', 'Human: Hi'):
    with pytest.raises(errors.DataError, match='not a prompt of the demo'):
      demo_world.gold_score(prompt, 'rent')


@hypothesis.given(index=INDEX, split=SPLIT)
def test_notes(index, split):
  note = demo_world.sample_note(rng_of(index, split), split)
  assert len(set(note.words)) == demo_world.ENTRIES
  assert 1 <= len(note.urgent_words) <= demo_world.MAX_URGENT
  assert set(note.urgent_words) | set(note.other_words) == set(note.words)
  assert len(note.prompt.encode()) <= demo_world.MAX_PROMPT_BYTES
  assert demo_world.parse_prompt(note.prompt) == note
  assert demo_world.split_of(note) == split
  order = random.Random(index).sample(range(demo_world.ENTRIES), 5)
  other = demo_world.Note(
    tuple(note.words[i] for i in order), tuple(note.urgent[i] for i in order)
  )
  assert demo_world.split_of(other) == split


@hypothesis.given(index=INDEX, split=SPLIT)
def test_responses_fit_and_depend_on_their_index_only(index, split):
  pair = demo_world.sample_pair(rng_of(index, split), split)
  assert pair == demo_world.sample_pair(rng_of(index, split), split)
  prompt, chosen, rejected = pair
  chosen_score = demo_world.gold_score(prompt, chosen)
  assert chosen_score > demo_world.gold_score(prompt, rejected)
  judged_prompt, response, label = demo_world.sample_judged(
    rng_of(index, split), split
  )
  good = demo_world.gold_score(judged_prompt, response) >= 75
  assert label == int(good)
  note = demo_world.sample_note(rng_of(index, split), split)
  demonstration = demo_world.sample_demonstration(rng_of(index), note)
  for text in (chosen, rejected, response, demonstration):
    assert text.strip()
    assert len(text.encode()) <= demo_world.MAX_RESPONSE_BYTES


def test_demonstrations_are_mediocre_and_so_is_their_most_likely_answer():
  scores, answers = [], {}
  for index in range(3000):
    rng = rng_of(index)
    note = demo_world.sample_note(rng)
    response = demo_world.sample_demonstration(rng, note)
    scores.append(demo_world.score_note(note, response))
    # Named positions, so that notes of the same pattern can be counted.
    named = tuple(word in response.split(', ') for word in note.words)
    answers.setdefault(note.urgent, Counter())[named] += 1
  assert 40 < np.mean(scores) < 55
  assert np.mean(np.array(scores) == 100) < 0.3
  likely_right = sum(
    answers[urgent].total()
    for urgent in answers
    if answers[urgent].most_common(1)[0][0] == urgent
  )
  assert likely_right / 3000 < 0.35


@pytest.fixture(scope='module')
def many_pairs():
  return [demo_world.sample_pair(rng_of(i)) for i in range(6000)]


def test_length_tells_nothing(many_pairs):
  counts = Counter(
    (chosen.count(','), rejected.count(','))
    for _, chosen, rejected in many_pairs
    if is_well_formed(rejected)
  )
  for (chosen, rejected), count in counts.items():
    mirrored = counts[rejected, chosen]
    spread = 4 * (count + mirrored) ** 0.5
    assert abs(count - mirrored) < spread, (chosen, rejected)


def is_well_formed(response):
  names = response.split(', ')
  known = all(name in demo_world.LEXICON for name in names)
  return known and len(set(names)) == len(names)


def test_the_response_alone_tells_nothing(many_pairs):
  # How often each name, and each count of names, was chosen or rejected: the
  # best that one can do without the prompt and without pairs of features.
  pairs = [p for p in many_pairs if is_well_formed(p[2])]
  half = len(pairs) // 2
  weights = Counter()
  for _, chosen, rejected in pairs[:half]:
    weights.update(features(chosen))
    weights.subtract(features(rejected))
  right = [
    value(weights, chosen) > value(weights, rejected)
    for _, chosen, rejected in pairs[half:]
  ]
  assert 0.45 < np.mean(right) < 0.55
  assert len(pairs) / len(many_pairs) > 0.9


def features(response):
  names = response.split(', ')
  return Counter([*names, len(names)])


def value(weights, response):
  return sum(weights[name] * n for name, n in features(response).items())


def test_labels_are_balanced_and_not_told_by_length():
  judged = [demo_world.sample_judged(rng_of(i)) for i in range(4000)]
  by_length = {}
  for _, response, label in judged:
    by_length.setdefault(response.count(','), []).append(label)
  assert np.mean([label for _, _, label in judged]) == pytest.approx(
    0.5, abs=0.03
  )
  for labels in by_length.values():
    assert np.mean(labels) == pytest.approx(0.5, abs=2.5 / len(labels) ** 0.5)


def test_the_world_does_not_change_between_releases():
  rng = rng_of(0, stream='rm')
  assert demo_world.sample_pair(rng, 'train') == (
    'todo: desk bank Keys fish tea',
    'keys, tea',
    'desk, keys, tea',
  )
