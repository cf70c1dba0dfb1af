import pytest

from perlhf_jax.core import errors
from perlhf_jax.data import json_rows
from perlhf_jax.data import kinds
from perlhf_jax.data import own_functions

_ROW = json_rows.Row('rows.jsonl:7', {'q': 'x', 'answer': 'y'})


def _parse(record):
  return record


@pytest.mark.parametrize(
  ('function', 'wanted'),
  [
    ('a name', "parse is 'a name'; give a function"),
    (None, 'parse is None'),
    (lambda: {}, r'arguments \(\) \(too many positional'),
    (lambda record, more: {}, "missing a required argument: 'more'"),
  ],
)
def test_a_function_of_other_arguments_is_named(function, wanted):
  with pytest.raises(errors.ConfigError, match=f"Task 'toy': .*{wanted}"):
    own_functions.check_takes_one('toy', 'parse', function)


def test_functions_of_one_record_pass():
  for function in _parse, dict, lambda record, more=3: {}, lambda *records: {}:
    own_functions.check_takes_one('toy', 'parse', function)


@pytest.mark.parametrize(
  ('function', 'problem'),
  [
    (lambda record: record['z'], "the field 'z' is missing"),
    (
      lambda record: record['answr'],
      "the field 'answr' is missing; the record has 'answer' (",
    ),
    (lambda record: int(record['q']), 'invalid literal for int() with base 10'),
    (
      lambda record: record['q'].strp(),
      "a field has the wrong type: AttributeError: 'str' object has no "
      "attribute 'strp' (",
    ),
    (lambda record: record['q'][3], 'a field is too short: IndexError: '),
  ],
)
def test_a_record_that_a_function_cannot_use_is_a_problem(function, problem):
  result, found = own_functions.attempt(function, _ROW.record)
  assert result is None
  assert found.startswith(problem)
  # The user's line stands behind it where the fault may be the function's.
  assert ('own_functions_test.py:' in found) == problem.endswith(('(', ': '))


def test_what_no_record_explains_is_the_functions_fault():
  def parse(record):
    return undefined  # noqa: F821

  with pytest.raises(
    errors.DataError,
    match=r'parse \(.*own_functions_test.py:\d+\) raised NameError: .*'
    r'in parse: return undefined',
  ):
    own_functions.attempt(parse, _ROW.record)


def test_examples_may_come_one_after_the_other():
  def parse(record):
    yield {'inputs': 'a'}
    yield {'inputs': record['z']}

  result, found = own_functions.attempt(parse, {'z': 'b'})
  assert (result, found) == ([{'inputs': 'a'}, {'inputs': 'b'}], '')
  assert own_functions.attempt(parse, {})[1] == "the field 'z' is missing"


@pytest.mark.parametrize(
  'made', [('a', 'b'), 'a', 3, ['a'], ({'inputs': 'a', 'targets': 'b'},)]
)
def test_what_is_no_example_names_the_function(made):
  with pytest.raises(errors.DataError) as raised:
    own_functions.examples_of(_parse, made, kinds.SFT, (), _ROW)
  message = str(raised.value)
  assert 'own_functions_test._parse (' in message
  assert f'returned {made!r}, of type {type(made).__name__}' in message
  assert 'for rows.jsonl:7' in message
  assert 'a dict with inputs, targets, a list' in message


@pytest.mark.parametrize(
  ('kind', 'names', 'wanted'),
  [
    ('sft', 'inputs target', "'targets' where it has 'target'?"),
    ('sft', 'inputs', 'takes inputs, targets.'),
    ('sft', '', 'a dict with nothing'),
    (
      'pairwise',
      'inputs targets',
      'inputs, chosen, rejected and perhaps margin',
    ),
    ('pairwise', 'inputs chosen rejected margins', "'margin' where"),
    ('pointwise', 'inputs targets', 'takes inputs, targets, label.'),
    ('prompts', 'prompt', 'takes inputs.'),
    ('prompts', 'inputs references', 'Register the task with references=True'),
    ('sft', 'inputs targets images', 'Register the task with images=True'),
  ],
)
def test_names_of_features_are_checked(kind, names, wanted):
  made = dict.fromkeys(names.split(), 'x')
  with pytest.raises(errors.DataError) as raised:
    own_functions.examples_of(_parse, made, kinds.KINDS[kind], (), _ROW)
  assert wanted in str(raised.value)
  assert '_parse (' in str(raised.value)


def test_names_that_pass():
  def check(kind, names, lists=(), record=None):
    made = dict.fromkeys(names.split(), 'x')
    row = _ROW if record is None else _ROW._replace(record=record)
    found = own_functions.examples_of(
      _parse, made, kinds.KINDS[kind], lists, row
    )
    assert found == [made]

  check('pairwise', 'inputs chosen rejected')
  check('pairwise', 'inputs chosen rejected margin id')
  check('sft', 'inputs targets images', ('images',))
  # Where records are examples already, the data has the names, not `parse`.
  check('sft', 'inputs', record={'inputs': 'x'})
  assert own_functions.examples_of(_parse, None, kinds.SFT, (), _ROW) == []
  assert own_functions.examples_of(_parse, [], kinds.SFT, (), _ROW) == []
