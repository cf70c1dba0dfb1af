"""Calls a task's own functions that make examples, and checks the results.

A record that a function cannot use is an error of the data, and becomes a row
with a problem. A wrong result is an error of the function; the message names
the function by file and line.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import difflib
import inspect
import reprlib
from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.core import user_code
from perlhf_jax.data import json_rows
from perlhf_jax.data import kinds

Features = Mapping[str, Any]


def check_takes_one(task: str, name: str, function: Any) -> None:
  """Checks that a function takes one argument, before any data is read.

  Args:
    task: name of the task, for messages.
    name: name of the function's argument, such as `parse`.
    function: the user's value.

  Raises:
    ConfigError: `function` cannot be called with one argument.
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
  """Calls a function on a record; returns its result and a problem.

  Args:
    function: function of a task.
    record: record of a file.

  Returns:
    The function's result and ''; or None and why the record is unusable.

  Raises:
    DataError: the function failed with an error that no record explains.
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
  parse: Callable[..., Any],
  made: Any,
  kind: kinds.Kind,
  lists: Sequence[str],
  row: json_rows.Row,
) -> list[Features]:
  """Returns the examples that `parse` made of a record.

  Args:
    parse: function of a task.
    made: result of `parse`.
    kind: kind of the task.
    lists: list features that the task declares.
    row: the record.

  Raises:
    DataError: `made` is not one or several examples of this kind.
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
    # If the record itself is the example, its names are not the function's.
    if each != row.record:
      check_names(parse, each, kind, lists, row.origin)
  return several


def check_names(
  function: Callable[..., Any],
  features: Any,
  kind: kinds.Kind,
  lists: Sequence[str],
  origin: str,
) -> None:
  """Checks that an example is a dict, and checks the names of its features.

  Args:
    function: function of a task that made the example.
    features: features of the example.
    kind: kind of the task.
    lists: list features that the task declares.
    origin: origin of the record, for messages.

  Raises:
    DataError: `features` is not a dict, or a name is missing, misspelt or not
      declared.
  """
  if not isinstance(features, Mapping):
    raise errors.DataError(
      f'{user_code.place_of(function)} made {reprlib.repr(features)}, of type'
      f' {type(features).__name__}, as {origin}. Each example must be a dict'
      f' with {_wanted(kind, lists)}.'
    )
  known = *kind.required, *kind.optional, *lists
  missing = [name for name in kind.required if name not in features]
  absent = [name for name in known if name not in features]
  unknown = [name for name in features if name not in known]
  hints = []
  for name in unknown:
    # For a list feature, the task lacks the option that declares it.
    if name in kinds.LISTS:
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
    f' the kind {kind.name!r} takes {_wanted(kind, lists)}.{"".join(hints)}'
  )


def _wanted(kind: kinds.Kind, lists: Sequence[str]) -> str:
  """Describes the features of a kind in words."""
  perhaps = f' and perhaps {", ".join(kind.optional)}' if kind.optional else ''
  return ', '.join([*kind.required, *lists]) + perhaps


def _near(error: KeyError, record: Mapping[str, Any]) -> str:
  """Suggests a field of the record for a misspelt one."""
  name = error.args[0] if error.args else None
  near = difflib.get_close_matches(str(name), map(str, record), n=1)
  if not near or name in record:
    return ''
  line = user_code.line_of(error)
  return f'; the record has {near[0]!r} {line}'.rstrip()
