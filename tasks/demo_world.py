"""A small world whose preferences follow a known rule.

A prompt is a to-do note of five entries, of which one to three are urgent
(written with a capital); a good response names the urgent ones and only those:

  prompt    todo: gym Rent tea Call bus
  response  rent, call

The rule is `gold_score`. A response cannot be judged without its prompt, so a
good reward model has learned to read. Demonstrations have systematic errors
(see `sample_demonstration`), so that learning from preferences can improve on
imitation.

Every example is a function of (seed, stream, split, index) alone: example
`i` does not depend on the number of examples. Splits never share a note: a hash
of its sorted entries assigns each note to a split, 80% of all notes to train
and 10% each to validation and test.

Only `Random.random()` is used, because Python guarantees its sequence for a
seed across versions, but not those of `choice` and `shuffle`.
"""

import random
from typing import NamedTuple
import zlib

from perlhf_jax.core import errors
from tasks import stable_random

LEXICON = (
  *('bank', 'call', 'desk', 'eggs', 'fish', 'gym', 'jam', 'keys'),
  *('lamp', 'mail', 'oil', 'post', 'rent', 'soap', 'tea', 'vet'),
)
ENTRIES = 5
MAX_URGENT = 3
MAX_NAMES = 3
MAX_PROMPT_BYTES = 30
MAX_RESPONSE_BYTES = 16
GOOD_SCORE = 75.0
SPLITS = ('train', 'validation', 'test')

_PREFIX = 'todo: '
# Weights of (number of names in chosen, in rejected). The table is symmetric,
# so the number of names does not reveal the preferred response.
_PAIR_COUNTS = (
  *(((1, 1), 0.12), ((2, 2), 0.20), ((3, 3), 0.12)),
  *(((1, 2), 0.13), ((2, 1), 0.13), ((2, 3), 0.12), ((3, 2), 0.12)),
  *(((1, 3), 0.03), ((3, 1), 0.03)),
)
_BROKEN_RATE = 0.04


class Note(NamedTuple):
  """A to-do note: its words in order, and which of them are urgent."""

  words: tuple[str, ...]
  urgent: tuple[bool, ...]

  @property
  def prompt(self) -> str:
    """The note as the model reads it, at most 30 bytes."""
    return _PREFIX + ' '.join(self.entries)

  @property
  def entries(self) -> list[str]:
    """The words as written, urgent ones with a capital, in order."""
    pairs = zip(self.words, self.urgent, strict=True)
    return [word.capitalize() if u else word for word, u in pairs]

  @property
  def urgent_words(self) -> list[str]:
    """The words that a perfect response names."""
    pairs = zip(self.words, self.urgent, strict=True)
    return [word for word, is_urgent in pairs if is_urgent]

  @property
  def other_words(self) -> list[str]:
    """The words that a response should leave out."""
    pairs = zip(self.words, self.urgent, strict=True)
    return [word for word, is_urgent in pairs if not is_urgent]


def parse_prompt(prompt: str) -> Note:
  """Parses a prompt.

  Raises:
    DataError: the prompt is not a note of this world.
  """
  entries = prompt.strip().removeprefix(_PREFIX.strip()).split()
  words = tuple(entry.lower() for entry in entries)
  urgent = tuple(entry[0].isupper() for entry in entries)
  if not any(urgent) or not prompt.strip().startswith(_PREFIX.strip()):
    raise errors.DataError(
      f'{prompt!r} is not a prompt of the demo world, such as'
      " 'todo: gym Rent tea Call bus'; the gold score judges only those."
    )
  return Note(words, urgent)


def gold_score(prompt: str, response: str) -> float:
  """Judges a response by the rule of this world, from 0 to 100.

  A response is a comma-separated list of names; spaces around a name and the
  order of the names do not matter. With `urgent` as the number of urgent
  entries of the note,

    score = 100 * max(0, hits - 0.5 * extras - inventions) / urgent

  * hits: urgent words that are named;
  * extras: names of entries that are not urgent, and every repetition;
  * inventions: anything else between two commas, such as words that are not in
    the note, misspelt words, sentences, or empty text.

  For the prompt `todo: gym Rent tea Call bus`:

    rent, call          100    both, nothing else
    call,rent           100    order and spaces do not matter
    rent                 50    one of two
    rent, call, gym      75    (2 - 0.5) / 2
    rent, gym            25    (1 - 0.5) / 2
    rent, rent           25    the second one is an extra
    rent, jam             0    (1 - 1) / 2
    rent call             0    one unknown name
    (empty)               0

  Args:
    prompt: a note in the form of `Note.prompt`.
    response: any text.

  Returns:
    The score; 100 if every urgent word is named once, and nothing else.

  Raises:
    DataError: the prompt is not a note of this world.
  """
  return score_note(parse_prompt(prompt), response)


def score_note(note: Note, response: str) -> float:
  """Returns the `gold_score` of a parsed note."""
  if not response.strip():
    return 0.0
  urgent = note.urgent_words
  points = 0.0
  seen = set()
  for name in (part.strip() for part in response.split(',')):
    if name not in note.words:
      points -= 1.0
    elif name in seen or name not in urgent:
      points -= 0.5
    else:
      points += 1.0
    seen.add(name)
  return 100.0 * max(0.0, points) / len(urgent)


def split_of(note: Note) -> str:
  """Returns the only split of a note (in any order)."""
  bucket = zlib.crc32(' '.join(sorted(note.entries)).encode()) % 10
  return 'train' if bucket < 8 else SPLITS[bucket - 7]


def example_rng(
  seed: int, stream: str, split: str, index: int
) -> random.Random:
  """Returns the random generator of one example."""
  return random.Random(f'{seed}/{stream}/{split}/{index}')


def sample_note(rng: random.Random, split: str | None = None) -> Note:
  """Draws a note, from one split if it is given."""
  while True:
    words = tuple(stable_random.sample(rng, LEXICON, ENTRIES))
    marked = stable_random.sample(
      rng, words, 1 + stable_random.below(rng, MAX_URGENT)
    )
    note = Note(words, tuple(word in marked for word in words))
    if split is None or split_of(note) == split:
      return note


def sample_demonstration(rng: random.Random, note: Note) -> str:
  """Draws the answer of an imperfect writer.

  Beside random errors, writers have two habits. They mention the first entry
  even if it is not urgent (probability 0.6; other such entries 0.1), and they
  forget the last urgent entry if there are several (0.55; others 0.2). One in
  eight adds a word that is not in the note. Names are in the order of the note.
  The mean gold score is about 50. The most likely answer is often wrong and
  scores about 52, so greedy decoding does not help.
  """
  last_urgent = note.urgent_words[-1]
  several = len(note.urgent_words) > 1
  while True:
    names = []
    for position, word in enumerate(note.words):
      if not note.urgent[position]:
        probability = 0.6 if position == 0 else 0.1
      elif several and word == last_urgent:
        probability = 0.45
      else:
        probability = 0.8
      if rng.random() < probability:
        names.append(word)
    if rng.random() < 0.125:
      names.insert(
        stable_random.below(rng, len(names) + 1), _invention(rng, note)
      )
    if names and len(names) <= MAX_NAMES:
      return ', '.join(names)


def sample_pair(
  rng: random.Random, split: str | None = None
) -> tuple[str, str, str]:
  """Draws a preference: a prompt, the chosen and the rejected response.

  The chosen response has a strictly greater gold score. The numbers of names
  are drawn from a symmetric table, and no word of the lexicon is better than
  another, so that neither length nor the response alone reveals which one was
  chosen. Half of the pairs differ by one name. As an exception, 4% of the
  rejected responses are broken by themselves (a repetition, a misspelling, a
  missing comma), because a policy will try such responses.

  Returns:
    (prompt, chosen, rejected), at most 30, 16 and 16 bytes.
  """
  (chosen_count, rejected_count) = stable_random.weighted(rng, _PAIR_COUNTS)
  broken = rng.random() < _BROKEN_RATE
  while True:
    note = sample_note(rng, split)
    names = _sample_names(rng, note, chosen_count)
    if broken:
      chosen, rejected = ', '.join(names), _break(rng, names)
    else:
      if rng.random() < 0.5:
        others = _neighbour(rng, note, names, rejected_count)
      else:
        others = _sample_names(rng, note, rejected_count)
      chosen, rejected = ', '.join(names), ', '.join(others)
    difference = score_note(note, chosen) - score_note(note, rejected)
    if difference > 0:
      return note.prompt, chosen, rejected
    if difference < 0 and chosen_count == rejected_count and not broken:
      return note.prompt, rejected, chosen


def sample_judged(
  rng: random.Random, split: str | None = None
) -> tuple[str, str, int]:
  """Draws a judged response: label 1 if its gold score is at least 75.

  Half of the labels are 1. The numbers of urgent entries and of names are
  drawn before the label, so that they do not reveal it.

  Returns:
    (prompt, response, label).
  """
  label = int(rng.random() < 0.5)
  note = sample_note(rng, split)
  urgent = len(note.urgent_words)
  # With two or more urgent entries, one extra still leaves 75 points.
  count = min(urgent + int(urgent > 1 and rng.random() < 0.3), MAX_NAMES)
  while True:
    response = ', '.join(_sample_names(rng, note, count))
    if (score_note(note, response) >= GOOD_SCORE) == bool(label):
      return note.prompt, response, label


def _sample_names(rng: random.Random, note: Note, count: int) -> list[str]:
  """Draws distinct names, mostly urgent ones, usually in the note's order."""
  pool = [
    (rng.random() * (3.0 if is_urgent else 1.5), word)
    for word, is_urgent in zip(note.words, note.urgent, strict=True)
  ]
  if rng.random() < 0.2:
    pool.append((rng.random() * 3.0, _invention(rng, note)))
  names = [word for _, word in sorted(pool, reverse=True)[:count]]
  return _arrange(rng, note, names)


def _neighbour(
  rng: random.Random, note: Note, names: list[str], count: int
) -> list[str]:
  """Swaps one name for another, and adds or drops some to reach `count`."""
  names = list(names)
  unused = [word for word in note.words if word not in names]
  if rng.random() < 0.2:
    unused = [_invention(rng, note)]
  if len(names) == count and unused:
    drawn = stable_random.choice(rng, unused)
    names[stable_random.below(rng, len(names))] = drawn
  while len(names) > count:
    names.pop(stable_random.below(rng, len(names)))
  while len(names) < count:
    unused = [word for word in note.words if word not in names]
    names.append(stable_random.choice(rng, unused))
  return _arrange(rng, note, names)


def _arrange(rng: random.Random, note: Note, names: list[str]) -> list[str]:
  """Orders names as in the note (inventions anywhere), one in 20 freely."""
  if rng.random() < 0.05:
    return stable_random.sample(rng, names, len(names))
  known = [word for word in note.words if word in names]
  for name in names:
    if name not in known:
      known.insert(stable_random.below(rng, len(known) + 1), name)
  return known


def _break(rng: random.Random, names: list[str]) -> str:
  """Makes a response that is bad for any note."""
  names = list(names)
  position = stable_random.below(rng, len(names))
  word = names[position]
  kind = stable_random.below(rng, 5)
  if kind == 0:
    names.insert(stable_random.below(rng, len(names) + 1), word)
  elif kind == 1:
    names[position] = word[:-1]
  elif kind == 2:
    names[position] = word + word[-1]
  elif kind == 3:
    names.insert(position, '')
  else:
    names[position] = f'{word} {word}'
  separator = ' ' if kind == 4 else ', '
  return separator.join(names)[:MAX_RESPONSE_BYTES].strip()


def _invention(rng: random.Random, note: Note) -> str:
  while True:
    word = stable_random.choice(rng, LEXICON)
    if word not in note.words:
      return word
