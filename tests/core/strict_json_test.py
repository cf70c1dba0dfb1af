import json
import math

import pytest

from perlhf_jax.core import strict_json


def test_what_is_written_is_read_again():
  value = {'text': 'é "x"\n', 'numbers': [1, 0.1, None, True], 'more': {}}
  for indent in None, 2:
    text = strict_json.dumps(value, indent)
    assert strict_json.loads(text) == json.loads(text) == value
    assert 'é' in text


@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_no_json(number):
  with pytest.raises(ValueError, match='not JSON compliant'):
    strict_json.dumps({'a': [number]})
  with pytest.raises(ValueError, match='is not JSON; write null'):
    strict_json.loads(json.dumps({'a': [number]}))
  value = {'a': [number, 1.5], 'b': {'c': (number, 'nan')}, 'd': 2}
  assert strict_json.null_nonfinite(value) == {
    'a': [None, 1.5],
    'b': {'c': [None, 'nan']},
    'd': 2,
  }


@pytest.mark.parametrize('deep', ['[' * 100_000, '{"a":' * 100_000, '[' * 900])
def test_what_is_nested_too_deeply_is_refused(deep):
  for text in deep, deep + '1' + ']' * 100_000:
    with pytest.raises(ValueError):
      strict_json.loads(text)
  with pytest.raises(ValueError, match='more than 100 levels deep'):
    strict_json.loads('[' * 101 + ']' * 101)
  with pytest.raises(ValueError, match='more than 100 levels deep'):
    strict_json.loads('{"a":' * 100 + '[]' + '}' * 100)
  value = strict_json.loads('[' * 100 + ']' * 100)
  assert strict_json.loads(strict_json.dumps(value)) == value


def test_bytes_are_utf_8():
  assert strict_json.loads('["é"]'.encode()) == ['é']
  with pytest.raises(ValueError, match='utf-8'):
    strict_json.loads(b'["\xff"]')


def test_nan_is_taken_where_it_may_be():
  (value,) = strict_json.loads('[NaN]', allow_nan=True)
  assert math.isnan(value)
