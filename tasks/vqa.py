"""A judge and wrong answers for tasks of questions about images.

`soft_accuracy` judges answers like the VQA challenge: an answer that three
people gave counts fully. Answers are normalised before they are compared, as
described at https://visualqa.org/evaluation.html:

  lower case; no period outside numbers; number words up to ten as digits
  (`none` is 0); no articles; missing apostrophes of contractions restored;
  punctuation marks replaced by spaces, except apostrophes and colons, and
  commas between digits removed. The marks `$ % & # * ^ | ~` stay, as in the
  evaluation program.

The program also deletes all marks of an answer with a comma between digits, and
does not normalise answers if all ten people agree. The description does
neither, and neither does this module.
"""

from collections.abc import Sequence
import functools
import re
from typing import Any

from tasks import seeded_draws

# Number of people who must have given an answer for it to count fully.
_ENOUGH = 3

_COMMA_IN_NUMBER = re.compile(r'(?<=\d),(?=\d)')
_PERIOD = re.compile(r'\.(?!\d)')
_MARKS = str.maketrans(dict.fromkeys('!"()+,-/;<=>?@[\\]_`{}', ' '))
_ARTICLES = frozenset(('a', 'an', 'the'))
_NUMBERS = {
  word: str(number)
  for number, word in enumerate(
    'zero one two three four five six seven eight nine ten'.split()
  )
} | {'none': '0'}


def _contractions() -> dict[str, str]:
  """Returns contractions, by their spelling without an apostrophe.

  Spellings that are also other words (`were`, `ill`, `its`) are left out.
  """
  endings = {
    "n't": 'ai are ca could did does do had has have is might must need ought'
    ' sha should was were wo would',
    "'ve": 'could i might must should they we what where who would you',
    "'re": 'there they what why you',
    "'s": 'he how somebody someone that there what when where who why',
    "'ll": 'how it somebody someone something they what who why you',
    "'d": 'he how it someone something there they where who you',
  }
  words = {
    stem + ending for ending, stems in endings.items() for stem in stems.split()
  }
  words |= {"i'm", "ma'am", "o'clock", "y'all", "'twas"}
  return {word.replace("'", ''): word for word in words}


_CONTRACTIONS = _contractions()


@functools.lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
  """Returns the normalised form of an answer, for comparison."""
  text = _COMMA_IN_NUMBER.sub('', answer.lower())
  text = _PERIOD.sub('', text.translate(_MARKS))
  words = [_NUMBERS.get(word, word) for word in text.split()]
  return ' '.join(
    _CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES
  )


def soft_accuracy(
  prompts: Sequence[str],
  responses: Sequence[str],
  references: Sequence[Sequence[str]],
) -> list[float]:
  """Judges answers by the answers of people.

  The accuracy of a response is min(1, matches / 3), averaged over the ways to
  leave one person's answer out. With fewer than 4 references no response could
  reach 100 that way, so one match counts fully.

  Args:
    prompts: questions, which are ignored.
    responses: answers to judge.
    references: people's answers for each response; ten in VQAv2.

  Returns:
    A number from 0 to 100 for each response; 0 without references.
  """
  rows = zip(prompts, responses, references, strict=True)
  return [_accuracy(response, answers) for _, response, answers in rows]


def _accuracy(response: str, answers: Sequence[str]) -> float:
  matches = [normalise(answer) for answer in answers].count(normalise(response))
  others = len(answers) - 1
  if not matches or others < _ENOUGH:
    return 100.0 * bool(matches)
  without_a_match = min(1, (matches - 1) / _ENOUGH)
  without_another = min(1, matches / _ENOUGH)
  total = matches * without_a_match + (len(answers) - matches) * without_another
  return 100 * total / len(answers)


def draw_wrong(
  key: str, answers: Sequence[str], pools: Sequence[Sequence[str]]
) -> str:
  """Draws an answer whose soft accuracy is 0, by a hash of the key.

  The hash is a position in the first pool; the first wrong answer from there
  on, cyclically, is taken. If the pool has none, the next pool is used.

  Args:
    key: identifies the question and the seed.
    answers: answers that people gave.
    pools: answers to choose from, the most misleading pool first. An answer
      that occurs several times in a pool is drawn more often.

  Raises:
    ValueError: no answer in the pools is wrong.
  """
  right = {normalise(answer) for answer in answers}
  for pool in pools:
    if not pool:
      continue
    start = seeded_draws.draw_index(key, len(pool))
    for step in range(len(pool)):
      candidate = pool[(start + step) % len(pool)]
      if normalise(candidate) not in right:
        return candidate
  raise ValueError('no answer to another question is wrong here')


def judge_both(right: str, wrong: str, **shared: Any) -> list[dict[str, Any]]:
  """Returns two pointwise examples: a right answer (label 1), a wrong one (0).

  Args:
    right: the right answer.
    wrong: the wrong answer.
    **shared: features of both examples.
  """
  return [
    {**shared, 'targets': right, 'label': 1},
    {**shared, 'targets': wrong, 'label': 0},
  ]
