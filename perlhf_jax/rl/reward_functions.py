"""Rewards that are Python functions of strings; they run on the host."""

from collections.abc import Callable, Mapping, Sequence, Set
import inspect
import numbers
from typing import Any

import jax
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import user_code
from perlhf_jax.training import preemption

# (prompts, responses[, references]) -> one score per response
RewardFunction = Callable[..., Any]
REFERENCES = 'references'

_SHOWN_CHARACTERS = 80


def wants_references(function: RewardFunction) -> bool:
  """Whether a function has a parameter `references`."""
  try:
    return REFERENCES in inspect.signature(function).parameters
  except (TypeError, ValueError):  # Some built-in functions have no signature.
    return False


def check_signature(function: RewardFunction, given: Set[str] = frozenset()):
  """Checks that a function can be called with prompts and responses.

  Args:
    function: a reward function.
    given: names of arguments that come from elsewhere, such as gin.

  Raises:
    ConfigError: it takes fewer than two arguments, or requires others.
  """
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):  # Some built-in functions have no signature.
    return
  names = list(signature.parameters)
  further = {name for name in names[2:] if name in {REFERENCES, *given}}
  try:
    signature.bind([], [], **dict.fromkeys(further))
  except TypeError as error:
    raise errors.ConfigError(
      f'The reward function {user_code.place_of(function)} has the arguments '
      f'{signature}: {error}. It is called with two lists of the same length, '
      'the prompts and the responses: def reward(prompts, responses).'
    ) from error


def call(
  function: RewardFunction,
  prompts: Sequence[str],
  responses: Sequence[str],
  references: Sequence[Sequence[str] | None] = (),
  *,
  time_limit: float | None = None,
) -> np.ndarray:
  """Calls a reward function and checks the scores that it returns.

  Args:
    function: `(prompts, responses) -> scores`. It gets two lists of the same
      length, with a prompt repeated for each of its responses. A function with
      a parameter `references` also gets the right answers to each prompt.
    prompts: the prompt of each response.
    responses: the responses to score.
    references: right answers, None where there are none; empty if unknown.
    time_limit: seconds that the call may take; None for no limit.

  Returns:
    float32, one score per response.

  Raises:
    DataError: the function raised, took too long, or returned anything but one
      finite number per response. The message names the function.
    PreemptedError: SIGTERM came during the call, see
      `preemption.interruptible`.
  """
  name = user_code.name_of(function)
  further = {}
  if wants_references(function):
    if len(references) != len(responses) or None in references:
      raise errors.DataError(
        f'The reward function {name} takes references, the right answers, but '
        'the task has none. Use it as JUDGE on a task of prompts with '
        'references, or of demonstrations.'
      )
    further[REFERENCES] = [list(answers) for answers in references]
  with preemption.interruptible(f'the reward function {name}', time_limit):
    try:
      result = function(list(prompts), list(responses), **further)
    except (Exception, SystemExit) as error:
      first = _shown(responses[0]) if responses else None
      raise errors.DataError(
        f'The reward function {name} raised {user_code.describe(error)}. It '
        f'was called with {len(responses)} responses, the first of them '
        f'{first}.'
      ) from error
    # If `result` is a generator, the user's code runs here.
    scores = _scores(name, result, len(responses))
  for i in np.flatnonzero(~np.isfinite(scores)):
    raise errors.DataError(
      f'The reward function {name} gave {scores[i]} for the response '
      f'{_shown(responses[i])}; every score must be finite in float32.'
    )
  return scores


def _scores(name: str, result: Any, num_responses: int) -> np.ndarray:
  """Converts the result of a function to float32 `[num_responses]`."""
  what = f'must give {num_responses} numbers, one per response'
  is_unordered = isinstance(result, Mapping | Set)
  try:
    # Converts an array of torch or JAX as a whole, not number by number.
    values = np.asarray(result) if hasattr(result, 'shape') else result
    values = None if is_unordered else list(values)
  except (Exception, SystemExit) as error:
    raise errors.DataError(
      f'The reward function {name} gave a {type(result).__name__} that cannot '
      f'be read: {user_code.describe(error)}; it {what}.'
    ) from error
  if values is None:
    raise errors.DataError(
      f'The reward function {name} gave a {type(result).__name__}, which has '
      f'no order; it {what}.'
    )
  if len(values) != num_responses:
    raise errors.DataError(
      f'The reward function {name} gave {len(values)} scores; it {what}.'
    )
  scores = [_number(name, value, what) for value in values]
  with np.errstate(over='ignore'):  # Overflow gives inf, which `call` refuses.
    return np.array(scores, np.float64).astype(np.float32)


def _number(name: str, value: Any, what: str) -> float:
  """Converts a number, True and False included, to float."""
  # Not all floating types of NumPy and JAX are registered as `numbers.Real`.
  is_number = isinstance(value, numbers.Real | np.bool_)
  if isinstance(value, np.generic):
    is_number = is_number or value.dtype.kind in 'fV'  # V: bfloat16.
  is_number = is_number or (isinstance(value, jax.Array) and value.ndim == 0)
  try:
    if is_number:
      return float(value)
  except (TypeError, ValueError, OverflowError):
    pass  # Complex numbers of JAX, and integers too large for a float.
  raise errors.DataError(
    f'The reward function {name} gave {_shown(value)}, of type '
    f'{type(value).__name__}, as a score; it {what}.'
  )


def _shown(value: Any) -> str:
  """Returns a value as one line of limited length."""
  text = repr(value)
  if len(text) <= _SHOWN_CHARACTERS:
    return text
  return f'{text[:_SHOWN_CHARACTERS]}…'
