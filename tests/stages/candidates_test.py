"""Files of candidates: what is read, what is refused, and how it is scored."""

import copy
import json
import math

import numpy as np
import pytest
import runs

from perlhf_jax.core import errors
from perlhf_jax.stages import candidates

BEST_OF = [
  {
    'prompt': '2 + 2?',
    'responses': ['4', '5', '3'],
    'num_correct': 1,
    'subset': 'Math',
  },
  {
    'prompt': '3 + 3?',
    'responses': ['6', 'six', '7'],
    'num_correct': 2,
    'subset': 'Math',
  },
  {
    'prompt': 'The sky?',
    'responses': ['blue', 'green'],
    'num_correct': 1,
    'subset': 'Focus',
  },
  {
    'prompt': 'The first colour?',
    'responses': ['red', 'no'],
    'num_correct': 1,
    'subset': 'Ties',
    'id': 'ref:a',
  },
  {
    'prompt': 'A colour?',
    'responses': ['red', 'blue', 'no'],
    'num_correct': 2,
    'subset': 'Ties',
    'id': 'tied:a',
  },
]
STYLES = [
  {
    'prompt': '2 + 2?',
    'chosen': ['4', 'It is 4.'],
    'rejected': ['5', 'It is 5.'],
    'domain': 'math',
  },
  {
    'prompt': 'Poison?',
    'chosen': ['no', 'No, sorry.'],
    'rejected': ['yes', 'Yes, sure.'],
    'domain': 'safety-refuse',
  },
  {
    'prompt': 'Kill a process?',
    'chosen': ['kill', 'Use kill.'],
    'rejected': ['no', 'No, sorry.'],
    'domain': 'safety-response',
  },
]


def _arrays(scores):
  return [np.array(line, np.float64) for line in scores]


def test_each_subset_has_its_score(tmp_path):
  path = runs.write_rows(tmp_path / 'best_of.jsonl', BEST_OF)
  read = candidates.read(str(path))
  assert read.responses[0] == ['4', '5', '3'] and len(read.rows) == 5
  result = read.measure(
    _arrays([[2, 1, 2], [0, 3, 1], [1, 2], [1, 0], [2, 1.5, 0]])
  )
  # A tie of two is worth one half; any correct response may be the best.
  assert result['subsets']['Math'] == {
    'score': 0.75,
    'standard_error': pytest.approx(0.25),
    'ties': 1,
    'lines': 2,
  }
  focus = result['subsets']['Focus']
  assert (focus['score'], focus['ties'], focus['lines']) == (0, 0, 1)
  assert math.isnan(focus['standard_error'])
  ties = result['subsets']['Ties']
  # gap 1.5, spread 0.5, gap of the reference 1.
  assert ties['score'] == pytest.approx(1 + 0.01 * math.tanh(1 / 0.5 - 1))
  assert ties['lines'] == 2
  assert result['score'] == pytest.approx((0.75 + 0 + ties['score']) / 3)


def test_the_error_of_the_mean_over_subsets(tmp_path):
  rows = BEST_OF[:2] * 2 + BEST_OF[2:3] * 3
  path = runs.write_rows(tmp_path / 'best_of.jsonl', rows)
  scores = [[1, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0], [0, 1], [1, 0]]
  result = candidates.read(str(path)).measure(_arrays(scores))
  math_error = np.std([1, 0, 1, 1], ddof=1) / 2
  focus_error = np.std([1, 0, 1], ddof=1) / math.sqrt(3)
  wanted = math.sqrt(math_error**2 + focus_error**2) / 2
  assert result['standard_error'] == pytest.approx(wanted)


def test_each_domain_has_its_matrix(tmp_path):
  path = runs.write_rows(tmp_path / 'styles.jsonl', STYLES)
  read = candidates.read(str(path))
  assert read.responses[0] == ['4', 'It is 4.', '5', 'It is 5.']
  result = read.measure(
    _arrays([[1, 3, 0, 2], [0, 1, 0, 1], [4, 5, 1, 2]]),
  )
  domains = result['domains']
  assert domains['math']['matrix'] == [[1, 0], [1, 1]]
  # The two kinds of safety are one domain.
  assert domains['safety']['matrix'] == [[0.5, 0.5], [1, 0.5]]
  assert domains.keys() == {'math', 'safety'}
  assert domains['safety']['lines'] == 2
  assert result['hard'] == 0.25 and result['easy'] == 1
  assert result['score'] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_the_first_lines_are_enough(tmp_path):
  path = runs.write_rows(tmp_path / 'best_of.jsonl', BEST_OF)
  assert len(candidates.read(str(path), 2).rows) == 2


@pytest.mark.parametrize(
  ('rows', 'number', 'change', 'wanted'),
  [
    (BEST_OF, 1, {'num_correct': 0}, 'no correct response'),
    (BEST_OF, 2, {'num_correct': 3}, '3 of 3 response(s); at least one'),
    (BEST_OF, 1, {'num_correct': 4}, '4 of 3 response(s)'),
    (BEST_OF, 1, {'num_correct': True}, '"num_correct" is True'),
    (BEST_OF, 1, {'num_correct': 1.0}, '"num_correct" is 1.0'),
    (BEST_OF, 1, {'num_correct': None}, '"num_correct" is None'),
    (BEST_OF, 1, {'responses': []}, "'responses' is [], not a list of resp"),
    (BEST_OF, 2, {'responses': 'six'}, "'responses' is 'six', not a list"),
    (BEST_OF, 1, {'responses': ['4', '', '3']}, "responses[1] is ''; give"),
    (BEST_OF, 1, {'responses': ['4', 5]}, 'responses[1] is 5; give the text'),
    (BEST_OF, 3, {'subset': 7}, "'subset' is 7; give the name"),
    (BEST_OF, 3, {'subset': ''}, "'subset' is ''; give the name"),
    (BEST_OF, 4, {'id': None}, 'has the id None; give "ref:NAME"'),
    (BEST_OF, 4, {'id': 'ref:'}, "has the id 'ref:'; give"),
    (BEST_OF, 4, {'id': 'tie:a'}, "has the id 'tie:a'; give"),
    (BEST_OF, 5, {'id': 'ref:a', 'num_correct': 1}, 'as line 4 has'),
    (BEST_OF, 4, {'id': 'ref:b'}, 'ref:b, and no line has tied:b'),
    (
      BEST_OF,
      4,
      {'num_correct': 2, 'responses': ['a', 'b', 'c']},
      'a reference has one correct response',
    ),
    (BEST_OF, 1, {'prompt': 3}, "has no string 'prompt'"),
    (STYLES, 2, {'chosen': ['no']}, "'chosen' has 1 response(s); every list"),
    (STYLES, 2, {'rejected': None}, "'rejected' is None, not a list"),
    (STYLES, 3, {'domain': ['math']}, "'domain' is ['math']; give the name"),
    (STYLES, 1, {'responses': ['4'], 'subset': 'a'}, '"num_correct" is None'),
  ],
)
def test_bad_lines_are_refused(tmp_path, rows, number, change, wanted):
  rows = copy.deepcopy(rows)
  rows[number - 1].update(change)
  path = runs.write_rows(tmp_path / 'bad.jsonl', rows)
  with pytest.raises(errors.DataError) as caught:
    candidates.read(str(path))
  assert f'{path}:{number}' in str(caught.value)
  assert wanted in str(caught.value)


def test_a_line_without_candidates_says_how_they_look(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(json.dumps({'prompt': 'a', 'response': 'b'}))
  with pytest.raises(errors.DataError, match='l:1 has no candidates'):
    candidates.read(str(path))
