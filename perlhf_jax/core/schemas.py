"""Checks what files say of themselves before anything is made of it.

A schema is a dataclass: its fields are the keys of a JSON object, and their
annotations say what each may hold, bounds included; see `checks`.
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
  """Makes a dataclass of what a file says.

  Args:
    schema: the dataclass.
    raw: what `strict_json.loads` returned, or a part of it.
    source: the file, and the part, for messages.
    error: the class of what is raised.
    only: whether keys that the schema does not have are refused.
    remedy: what to do about an error, as a sentence.

  Raises:
    UserError: of the class `error`; a key is missing or unknown, or a value is
      of another type or out of bounds.
  """
  with blamed_on(source, error, remedy):
    if not isinstance(raw, Mapping):
      raise errors.ConfigError(f'{checks.shown(raw)} is no JSON object.')
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
  """Makes errors of settings those of the file that the settings come from.

  Args:
    source: the file.
    error: the class of what is raised.
    remedy: what to do about it, as a sentence.

  Raises:
    UserError: of the class `error`, in the place of a ConfigError.
  """
  try:
    yield
  except errors.ConfigError as wrong:
    raise error(f'{source}: {wrong} {remedy}'.rstrip()) from wrong
