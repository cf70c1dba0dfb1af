from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import pytest

from perlhf_jax.core import checks
from perlhf_jax.core import errors


@runtime_checkable
class Animal(Protocol):
  legs: int

  def speak(self): ...


class Dog:
  legs = 4

  def speak(self):
    return 'woof'


Rank = Annotated[int, checks.AtLeastOne]
How = Annotated[str, checks.OneOf('mean', 'min')]
Share = Annotated[float | None, checks.Range(above=0, most=1)]


@pytest.mark.parametrize(
  ('value', 'annotation'),
  [
    (3, int),
    (np.int64(3), int),
    (3, float),
    (0.5, float),
    ('a', str),
    (True, bool),
    (None, None),
    (None, int | None),
    (2, int | None),
    ('mean', How),
    (1, Rank),
    (None, Share),
    (1.0, Share),
    (('a', 'b'), Sequence[str]),
    ([], Sequence[str]),
    ('a', str | Sequence[str]),
    ((0, 2), tuple[int, int]),
    ((1, 2, 3), tuple[int, ...]),
    ({'inputs': 3}, Mapping[str, Rank]),
    (len, Callable),
    (len, Callable[..., int]),
    (Dog(), Animal),
    (Dog(), Dog | None),
    (object(), Any),
    (checks.UNKNOWN, Rank),
    ((checks.UNKNOWN, 'a'), Sequence[str]),
  ],
)
def test_allowed(value, annotation):
  checks.check('X', value, annotation)


@pytest.mark.parametrize(
  ('value', 'annotation', 'message'),
  [
    ('fast', float, "X is 'fast'; it must be a number."),
    (math.nan, float, 'X is nan; it must be a number.'),
    (math.inf, Annotated[float, checks.Positive], 'a number above 0'),
    (True, int, 'X is True; it must be a whole number.'),
    (2.0, int, 'a whole number'),
    (1, bool, 'True or False'),
    (1, str, 'text in quotes'),
    (0, Rank, 'a whole number of at least 1.'),
    ('a', Rank, 'a whole number of at least 1.'),
    (0, Share, 'a number above 0 and of at most 1 or None'),
    (1.5, Annotated[float, checks.Fraction], 'a number from 0 to 1.'),
    (1, Annotated[float, checks.Range(least=0, below=1)], 'and below 1'),
    ('max', How, "X is 'max'; it must be one of 'mean', 'min'."),
    (1, How, "one of 'mean', 'min'"),
    ('max', How | None, "one of 'mean', 'min' or None"),
    (('mean', 'max'), Sequence[How], "a list, each item one of 'mean', 'min'"),
    ('query', Sequence[str], 'a list, each item text in quotes'),
    ((1,), Sequence[str], 'each item text'),
    ((1, 2, 3), tuple[int, int], 'a tuple of 2: (a whole number, a whole'),
    ({'inputs': 0}, Mapping[str, Rank], 'a dict of a whole number of at least'),
    ((), Mapping[str, int], 'a dict'),
    (object(), Animal, 'X is object, which lacks legs, speak; it must be an'),
    ('ppo', Animal, "X is 'ppo'; it must be an Animal (in gin, @name()"),
    ('x', Callable | None, 'a function or None'),
    (
      0,
      Annotated[int, checks.Range(least=1, hint='for none leave it out')],
      'of at least 1 (for none leave it out).',
    ),
  ],
)
def test_refused(value, annotation, message):
  with pytest.raises(errors.ConfigError) as error:
    checks.check('X', value, annotation)
  assert message in str(error.value)


@dataclasses.dataclass(frozen=True)
class Settings:
  rank: Rank = 8
  names: Sequence[str] = ()
  cache: Any = dataclasses.field(default=None, init=False)

  def __post_init__(self):
    checks.check_fields(self)


def test_fields_of_a_dataclass():
  Settings(rank=1, names=('a',))
  with pytest.raises(errors.ConfigError, match=r"Settings\.rank is 'a'"):
    Settings(rank='a')
  with pytest.raises(errors.ConfigError, match=r"Settings\.names is 'query'"):
    Settings(names='query')


def test_arguments_of_a_function():
  @checks.checked
  def train(*, steps: Rank, note: str | None = None):
    """Trains."""
    return steps, note

  assert train(steps=2) == (2, None)
  assert train.__doc__ == 'Trains.'
  with pytest.raises(errors.ConfigError, match=r'train\.steps is 0'):
    train(steps=0)
  with pytest.raises(errors.ConfigError, match=r'train\.note is 3'):
    train(steps=1, note=3)


def test_annotations_of_a_class_that_is_no_dataclass():
  class Model:
    def __init__(self, width: int):
      self.width = width

  assert checks.annotations_of(Model) == {'width': int}
