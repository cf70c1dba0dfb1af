"""Validates metadata read from files against schemas.

A schema is a dataclass: its fields are the keys of a JSON object, and their
annotations give the type and bounds of each value; see `checks`.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
from typing import Any, TypeVar

from perlhf_jax.core import checks
from perlhf_jax.core import errors

_Schema = TypeVar('_Schema')


def make(
  schema: type[_Schema],
  raw: Any,
  source: str,
  *,
  error: type[errors.UserError] = errors.CheckpointError,
  only: bool = False,
  remedy: str = '',
) -> _Schema:
  """Makes a dataclass from the JSON content of a file.

  Args:
    schema: the dataclass.
    raw: the result of `strict_json.loads`, or a part of it.
    source: name of the file and the part, for messages.
    error: class of the error to raise.
    only: whether to refuse keys that the schema does not have.
    remedy: what to do about an error, as a sentence.

  Raises:
    UserError: of the class `error`; a key is missing or unknown, or a value has
      another type or is out of bounds.
  """
  with blamed_on(source, error, remedy):
    if not isinstance(raw, Mapping):
      raise errors.ConfigError(f'{checks.shown(raw)} is not a JSON object.')
    fields = {each.name: each for each in dataclasses.fields(schema)}
    missing = [
      name
      for name, each in fields.items()
      if name not in raw
      and each.default is dataclasses.MISSING
      and each.default_factory is dataclasses.MISSING
    ]
    unknown = sorted(raw.keys() - fields.keys()) if only else []
    problems = [
      f'{schema.__name__.lstrip("_")} {what} '
      f'{", ".join(map(checks.shown, names[:5]))}.'
      for names, what in ((missing, 'lacks'), (unknown, 'has no place for'))
      if names
    ]
    hints = checks.annotations_of(schema)
    known = {name: raw[name] for name in fields if name in raw}
    for name, value in known.items():
      try:
        checks.check(name, value, hints[name])
      except errors.ConfigError as wrong:
        problems.append(str(wrong))
    if problems:
      raise errors.ConfigError(' '.join(problems))
    return schema(**known)


@contextlib.contextmanager
def blamed_on(
  source: str, error: type[errors.UserError], remedy: str = ''
) -> Iterator[None]:
  """Turns ConfigErrors into errors that name the file with the settings.

  Args:
    source: name of the file.
    error: class of the error to raise.
    remedy: what to do about it, as a sentence.

  Raises:
    UserError: of the class `error`, instead of a ConfigError.
  """
  try:
    yield
  except errors.ConfigError as wrong:
    raise error(f'{source}: {wrong} {remedy}'.rstrip()) from wrong
