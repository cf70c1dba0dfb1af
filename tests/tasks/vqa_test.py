import random

import pytest

from tasks import vqa


def judge(response, answers):
  (score,) = vqa.soft_accuracy(['a question'], [response], [answers])
  return score


def slow_accuracy(response, answers):
  """The definition, word by word."""
  total = 0
  for left_out in range(len(answers)):
    others = answers[:left_out] + answers[left_out + 1 :]
    total += min(1, sum(answer == response for answer in others) / 3)
  return 100 * total / len(answers)


@pytest.mark.parametrize(
  ('answer', 'form'),
  [
    ('Yes.', 'yes'),
    ('a Red\tcar', 'red car'),
    ('The two dogs', '2 dogs'),
    ('none', '0'),
    ('ten', '10'),
    ('eleven', 'eleven'),
    ('9.5', '9.5'),
    ('U.S.A.', 'usa'),
    ('100,978', '100978'),
    ('left, right', 'left right'),
    ('blue/white', 'blue white'),
    ('t-shirt', 't shirt'),
    ('"stop!"', 'stop'),
    ('2:50 pm', '2:50 pm'),
    ("girl's", "girl's"),
    ('dont', "don't"),
    ('It isnt', "it isn't"),
    ('theyre', "they're"),
    ('oclock', "o'clock"),
    ('were', 'were'),
    ('its', 'its'),
    ('10%', '10%'),
    ('$5', '$5'),
    ('', ''),
  ],
)
def test_form_of_an_answer(answer, form):
  assert vqa.normalise(answer) == form
  assert vqa.normalise(form) == form


@pytest.mark.parametrize(
  ('matches', 'score'),
  # Of m matches, m leave-one-out sets hold m - 1 of them, the others m.
  [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)],
)
def test_known_scores_of_ten_answers(matches, score):
  answers = ['red'] * matches + ['blue'] * (10 - matches)
  assert judge('red', answers) == pytest.approx(score)


def test_agrees_with_the_definition():
  rng = random.Random(0)
  for count in (4, 5, 10):
    for _ in range(50):
      answers = [rng.choice(['red', 'blue', '2']) for _ in range(count)]
      for response in ('red', '2', 'green'):
        expected = slow_accuracy(response, answers)
        assert judge(response, answers) == pytest.approx(expected)


def test_answers_and_responses_are_brought_into_one_form():
  assert judge('Two!', ['2', 'two.', 'the two', 'TWO'] + ['3'] * 6) == 100


def test_a_match_of_few_references_counts_fully():
  assert judge('Yes', ['yes']) == 100
  assert judge('no', ['yes']) == 0
  assert judge('red', ['blue', 'red', 'green']) == 100
  assert judge('red', []) == 0


def test_lists_must_have_one_length():
  with pytest.raises(ValueError, match='shorter'):
    vqa.soft_accuracy(['a', 'b'], ['yes'], [['yes'], ['no']])


def test_wrong_answers_are_wrong_and_drawn_by_the_key():
  pool = ['yes', 'Yes.', 'no', 'maybe']
  drawn = {vqa.draw_wrong(str(key), ['yes'], [pool]) for key in range(50)}
  assert drawn == {'no', 'maybe'}
  for key in ('a', 'b'):
    again = [vqa.draw_wrong(key, ['yes'], [pool]) for _ in range(2)]
    assert again[0] == again[1]


def test_wrong_answers_come_from_the_first_pool_that_has_one():
  pools = [[], ['yes', 'YES'], ['yes', 'red'], ['blue']]
  drawn = {vqa.draw_wrong(str(key), ['yes'], pools) for key in range(20)}
  assert drawn == {'red'}
  with pytest.raises(ValueError, match='no answer'):
    vqa.draw_wrong('key', ['yes', 'red'], pools[:3])


def test_frequent_answers_are_drawn_often():
  pool = ['no', 'red', 'no', 'no'] * 5
  drawn = [vqa.draw_wrong(str(key), ['yes'], [pool]) for key in range(400)]
  assert 260 < drawn.count('no') < 340


def test_judge_both():
  right, wrong = vqa.judge_both('yes', 'no', inputs='is it?', images=['a'])
  assert right == {
    'inputs': 'is it?',
    'images': ['a'],
    'targets': 'yes',
    'label': 1,
  }
  assert wrong == {**right, 'targets': 'no', 'label': 0}


def test_contractions_are_of_words_that_lack_an_apostrophe():
  for plain, word in vqa._CONTRACTIONS.items():
    assert plain == word.replace("'", '') != word
  # Other words as well; to change them would change what an answer means.
  others = ('were', 'ill', 'its', 'hell', 'shell', 'well', 'id', 'wed', 'lets')
  assert not set(vqa._CONTRACTIONS) & set(others)
