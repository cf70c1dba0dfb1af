import numpy as np
import pytest

from perlhf_jax.data import kinds
from perlhf_jax.data import row_checks

GOOD = {
  'sft': {'inputs': 'p', 'targets': 'r'},
  'pairwise': {'inputs': 'p', 'chosen': 'a', 'rejected': 'b', 'margin': 0.5},
  'pointwise': {'inputs': 'p', 'targets': 'r', 'label': 1},
  'prompts': {'inputs': 'p'},
}


@pytest.mark.parametrize('kind', GOOD)
def test_good_rows_have_no_problem(kind):
  assert row_checks.find_problem(kinds.KINDS[kind], GOOD[kind]) is None


@pytest.mark.parametrize('label', [0, 1, 0.0, 1.0, True, np.float32(1)])
def test_labels_that_are_fine(label):
  row = GOOD['pointwise'] | {'label': label}
  assert row_checks.find_problem(kinds.POINTWISE, row) is None


@pytest.mark.parametrize(
  ('kind', 'change', 'problem'),
  [
    ('sft', {'targets': ' \n'}, 'the response (targets) is empty'),
    ('sft', {'inputs': ''}, 'the prompt (inputs) is empty'),
    ('prompts', {'inputs': None}, 'the prompt (inputs) is NoneType, not text'),
    ('pairwise', {'rejected': 'a'}, 'are identical'),
    ('pairwise', {'chosen': ''}, 'chosen response (chosen) is empty'),
    ('pairwise', {'rejected': 3}, 'rejected response (rejected) is int'),
    ('pairwise', {'margin': 'big'}, "the margin is 'big', not a number"),
    ('pairwise', {'margin': float('nan')}, 'the margin is nan'),
    ('pairwise', {'margin': float('inf')}, 'the margin is inf'),
    ('pointwise', {'label': 2}, 'the label is 2, neither 0 nor 1'),
    ('pointwise', {'label': 0.5}, 'the label is 0.5, neither 0 nor 1'),
    ('pointwise', {'label': '1'}, "the label is '1', not a number"),
    ('pointwise', {'label': None}, 'the label is None, not a number'),
    ('sft', {'targets': 'a\ud800'}, 'half of a surrogate pair'),
  ],
)
def test_problems_say_what_is_wrong(kind, change, problem):
  found = row_checks.find_problem(kinds.KINDS[kind], GOOD[kind] | change)
  assert found is not None
  assert problem in found
