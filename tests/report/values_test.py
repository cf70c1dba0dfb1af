import math

import pytest

from perlhf_jax.report import values


@pytest.mark.parametrize(
  'value', [True, None, 'x', [1], math.nan, math.inf, 10**400, -(10**31), 1e31]
)
def test_what_no_plot_takes_is_no_number(value):
  assert values.number(value) is None
  assert values.shown('loss', value) == values.NONE


@pytest.mark.parametrize('value', [0, -3, 2.5, 10**15, 1e-300])
def test_numbers(value):
  assert values.number(value) == value


@pytest.mark.parametrize(
  ('name', 'value', 'text'),
  [
    ('pairwise_accuracy', 0.934, '93.4%'),
    ('pairwise_accuracy/chosen_longer', 0.5, '50.0%'),
    ('ensemble.mean.accuracy', 0.25, '25.0%'),
    ('win_rate_standard_error', 0.012, '1.2%'),
    ('trainable_fraction', 0.00093, '0.09%'),
    ('step_memory_bytes', 3 * 2**20, '3.0 MiB'),
    ('loss', 0.123456, '0.1235'),
    ('examples', 1000, '1,000'),
    ('judge_score', 87.4321, '87.43'),
    ('tokens', 123456.7, '123,457'),
  ],
)
def test_units(name, value, text):
  assert values.shown(name, value) == text


def test_long_text_is_shortened():
  text = values.shortened('a' * 2_000_000, 50)
  assert text == 'a' * 50 + '… (1,999,950 more characters)'


def test_unprintable_text_is_replaced():
  assert values.shortened('a\x00b\ud800c\u202ed\te\n', 50) == 'a�b�c�d\te\n'
  assert values.shortened({'a': 1}, 50) == "{'a': 1}"


def test_flat():
  nested = {'a': 1, 'b': {'c': 2.5, 'd': [1], 'e': {'f': 0}}, 'g': 'x'}
  assert dict(values.flat(nested)) == {'a': 1, 'b.c': 2.5, 'b.e.f': 0}
