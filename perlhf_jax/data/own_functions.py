"""Calls the functions of a task that make its examples, and checks them.

A record that a function cannot use is the data's fault and becomes a row with
a problem. What a function returns for every record is the function's fault:
the message names it by file and line.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import difflib
import inspect
import reprlib
from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.core import user_code
from perlhf_jax.data import row_checks

Features = Mapping[str, Any]


def check_takes_one(task: str, name: str, function: Any) -> None:
  """Checks a function of one argument before any data is read.

  Args:
    task: the task, for messages.
    name: what the user calls the function: `parse`.
    function: what the user gave.

  Raises:
    ConfigError: it cannot be called with one argument.
  """
  if not callable(function):
    raise errors.ConfigError(
      f'Task {task!r}: {name} is {function!r}; give a function of one record.'
    )
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):  # Some built-in functions have no signature.
    return
  try:
    signature.bind({})
  except TypeError as error:
    raise errors.ConfigError(
      f'Task {task!r}: {name} is {user_code.place_of(function)} with the'
      f' arguments {signature} ({error}); it is called with one record, a dict.'
    ) from error


def attempt(
  function: Callable[[dict[str, Any]], Any], record: dict[str, Any]
) -> tuple[Any, str]:
  """Returns what a function makes of a record, and what is wrong with it.

  Args:
    function: a task's own.
    record: of a file.

  Returns:
    The function's result, and ''; or None, and why the record is unusable.

  Raises:
    DataError: the function failed in a way that no record explains.
  """
  try:
    result = function(record)
    return list(result) if isinstance(result, Iterator) else result, ''
  except errors.UserError:
    raise
  except KeyError as error:
    return None, f'the field {error} is missing{_near(error, record)}'
  except ValueError as error:
    return None, str(error)
  except (TypeError, AttributeError) as error:
    return None, f'a field has the wrong type: {user_code.describe(error)}'
  except IndexError as error:
    return None, f'a field is too short: {user_code.describe(error)}'
  except Exception as error:
    raise errors.DataError(
      f'{user_code.place_of(function)} raised {user_code.describe(error)}.'
    ) from error


def examples_of(
  parse: Callable[..., Any], made: Any, kind: str, lists: Sequence[str], row
) -> list[Features]:
  """Returns the examples that `parse` made of a record.

  Args:
    parse: a task's own.
    made: what it returned.
    kind: sft, pairwise, pointwise or prompts.
    lists: the list features that the task declares.
    row: the record, a `json_rows.Row`.

  Raises:
    DataError: they are no examples of this kind.
  """
  if made is None:
    return []
  several = made if isinstance(made, list) else [made]
  if not all(isinstance(each, Mapping) for each in several):
    raise errors.DataError(
      f'{user_code.place_of(parse)} returned {reprlib.repr(made)}, of type'
      f' {type(made).__name__}, for {row.origin}. It must return a dict with'
      f' {_wanted(kind, lists)}, a list of such dicts for several examples, or'
      ' None to leave the record out.'
    )
  for each in several:
    # A record that is an example already has the names that it has.
    if each != row.record:
      check_names(parse, each, kind, lists, row.origin)
  return several


def check_names(
  function: Callable[..., Any],
  features: Any,
  kind: str,
  lists: Sequence[str],
  origin: str,
) -> None:
  """Checks that an example is a dict, and the names of its features.

  Args:
    function: a task's own, which made them.
    features: of one example.
    kind: sft, pairwise, pointwise or prompts.
    lists: the list features that the task declares.
    origin: of the record, for messages.

  Raises:
    DataError: it is no dict, or a name is missing, misspelt or not declared.
  """
  if not isinstance(features, Mapping):
    raise errors.DataError(
      f'{user_code.place_of(function)} made {reprlib.repr(features)}, of type'
      f' {type(features).__name__}, as {origin}. Each example must be a dict'
      f' with {_wanted(kind, lists)}.'
    )
  needed = _needed(kind)
  optional = [*row_checks.NUMBER_FEATURES[kind], *lists]
  missing = [name for name in needed if name not in features]
  absent = dict.fromkeys(
    name for name in (*needed, *optional) if name not in features
  )
  unknown = [name for name in features if name not in (*needed, *optional)]
  hints = []
  for name in unknown:
    # Of the two names of lists, an option has been left out.
    if name in row_checks.LISTS:
      missing.append(name)
      hints.append(f' Register the task with {name}=True.')
    elif near := difflib.get_close_matches(str(name), absent, n=1, cutoff=0.7):
      missing.append(near[0])
      hints.append(f' Did you mean {near[0]!r} where it has {name!r}?')
  if not missing:
    return
  raise errors.DataError(
    f'{user_code.place_of(function)} made a dict with'
    f' {", ".join(map(repr, features)) or "nothing"} for {origin}; a task of'
    f' the kind {kind!r} takes {_wanted(kind, lists)}.{"".join(hints)}'
  )


def _needed(kind: str) -> list[str]:
  """The features that every example has."""
  numbers = row_checks.NUMBER_FEATURES[kind]
  return [
    *row_checks.TEXT_FEATURES[kind],
    *(name for name, default in numbers.items() if default is None),
  ]


def _wanted(kind: str, lists: Sequence[str] = ()) -> str:
  """The features of a kind, in words."""
  optional = [
    name
    for name, default in row_checks.NUMBER_FEATURES[kind].items()
    if default is not None
  ]
  perhaps = f' and perhaps {", ".join(optional)}' if optional else ''
  return ', '.join([*_needed(kind), *lists]) + perhaps


def _near(error: KeyError, record: Mapping[str, Any]) -> str:
  """A field of the record that a misspelt one may mean."""
  name = error.args[0] if error.args else None
  near = difflib.get_close_matches(str(name), map(str, record), n=1)
  if not near or name in record:
    return ''
  line = user_code.line_of(error)
  return f'; the record has {near[0]!r} {line}'.rstrip()
