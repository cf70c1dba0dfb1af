import functools

import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.rl import reward_functions

PROMPTS = ['how long', 'how long', 'why']
RESPONSES = ['a', 'bcd', '']


def length_reward(prompts, responses):
  assert prompts == PROMPTS
  return [len(response) for response in responses]


def test_calls_the_function():
  scores = reward_functions.call(length_reward, PROMPTS, RESPONSES)
  assert scores.dtype == np.float32
  np.testing.assert_array_equal(scores, [1, 3, 0])


@pytest.mark.parametrize(
  'result, expected',
  [
    ((1, 2.5, True), [1, 2.5, 1]),
    (np.array([1, 2, 3]), [1, 2, 3]),
    (np.array([True, False, True]), [1, 0, 1]),
    (np.array([0.5, 1, 2], np.float16), [0.5, 1, 2]),
    (jnp.array([0.5, 1, 2], jnp.bfloat16), [0.5, 1, 2]),
    ([jnp.float32(0.5), np.float64(1), np.bool_(True)], [0.5, 1, 1]),
    ((x for x in (1, 2, 3)), [1, 2, 3]),
  ],
)
def test_numbers_of_every_kind(result, expected):
  scores = reward_functions.call(lambda p, r: result, PROMPTS, RESPONSES)
  assert scores.dtype == np.float32
  np.testing.assert_array_equal(scores, expected)


def test_no_responses():
  scores = reward_functions.call(lambda p, r: [], [], [])
  assert scores.shape == (0,)
  assert scores.dtype == np.float32


def _generator():
  yield 1.0
  raise KeyError('late')


@pytest.mark.parametrize(
  'result, message',
  [
    ([1.0, 2.0], 'gave 2 scores; it must give 3 numbers'),
    ([[1.0], [2.0], [3.0]], r'gave \[1.0\], of type list, as a score'),
    (np.zeros((3, 1)), 'of type ndarray, as a score'),
    (np.zeros(()), 'gave a ndarray that cannot be read'),
    (1.0, 'gave a float that cannot be read'),
    (None, 'gave a NoneType that cannot be read'),
    ('abc', "gave 'a', of type str, as a score"),
    (np.array(['1', '2', '3']), 'of type str_, as a score'),
    ([1.0, None, 2.0], 'gave None, of type NoneType'),
    ([1.0, 2j, 2.0], 'of type complex'),
    (np.array([1j, 2j, 3j]), 'of type complex128'),
    ([1, 10**400, 3], 'of type int, as a score'),
    ({1.0: 0, 2.0: 0, 3.0: 0}, 'gave a dict, which has no order'),
    ({1.0, 2.0, 3.0}, 'gave a set, which has no order'),
    (_generator(), "cannot be read: KeyError: 'late' .*, in _generator: "),
    ([1.0, float('nan'), 2.0], "gave nan for the response 'bcd'"),
    ([1.0, 2.0, -np.inf], "gave -inf for the response ''"),
    ([1e300, 1.0, 2.0], "gave inf for the response 'a'"),
  ],
)
def test_bad_results_name_the_function(result, message):
  def bad_reward(prompts, responses):
    return result

  with pytest.raises(errors.DataError, match=message) as info:
    reward_functions.call(bad_reward, PROMPTS, RESPONSES)
  assert 'bad_reward' in str(info.value)


def test_a_function_that_raises_is_named_with_its_error():
  def bad_reward(prompts, responses):
    raise ZeroDivisionError('too short')

  with pytest.raises(
    errors.DataError,
    match=r'bad_reward raised ZeroDivisionError: too short '
    r'\(.*reward_functions_test.py:\d+, in bad_reward: '
    r"raise ZeroDivisionError\('too short'\)\).*'a",
  ) as info:
    reward_functions.call(bad_reward, PROMPTS, RESPONSES)
  assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_interrupts_pass():
  def interrupted(prompts, responses):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    reward_functions.call(interrupted, PROMPTS, RESPONSES)


def test_a_function_may_change_its_lists():
  def greedy(prompts, responses):
    scores = []
    while responses:
      scores.append(len(responses.pop()))
    return scores

  responses = list(RESPONSES)
  reward_functions.call(greedy, PROMPTS, responses)
  assert responses == RESPONSES


def _one(responses):
  return [0.0] * len(responses)


def _keyword(*, prompts, responses):
  return [0.0] * len(responses)


def _scaled(prompts, responses, scale):
  return [scale] * len(responses)


def _judge(prompts, responses, references):
  return [0.0] * len(responses)


class Judge:
  def __call__(self, prompts):
    return [1]


@pytest.mark.parametrize(
  ('function', 'wanted'),
  [
    (_one, r'_one \(.*reward_functions_test.py:\d+\).*\(responses\): too many'),
    (_keyword, 'too many positional'),
    (_scaled, "missing a required argument: 'scale'"),
    (functools.partial(_scaled, scale=1, responses=[]), 'too many positional'),
    (Judge(), r'Judge \('),
    (lambda: [], r'has the arguments \(\)'),
  ],
)
def test_functions_of_other_arguments_are_named(function, wanted):
  with pytest.raises(errors.ConfigError, match=wanted) as raised:
    reward_functions.check_signature(function)
  assert 'def reward(prompts, responses)' in str(raised.value)


@pytest.mark.parametrize(
  ('function', 'given'),
  [
    (length_reward, ()),
    (_judge, ()),
    (_scaled, ('scale',)),
    # As of a reference with a scope, of which gin does not say what it binds.
    (_scaled, ('prompts', 'responses', 'scale')),
    (functools.partial(_scaled, scale=1), ()),
    (lambda *lists: lists, ()),
    (min, ()),  # Says nothing of its arguments.
  ],
)
def test_functions_of_two_lists_pass(function, given):
  reward_functions.check_signature(function, frozenset(given))


def test_long_texts_are_cut():
  with pytest.raises(errors.DataError) as info:
    reward_functions.call(lambda p, r: [np.nan], ['p'], ['x' * 10_000])
  assert len(str(info.value)) < 400
