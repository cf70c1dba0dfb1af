import dataclasses
from typing import Annotated

import pytest

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import schemas


@dataclasses.dataclass(frozen=True)
class Sizes:
  width: Annotated[int, checks.Range(least=1, most=100)]
  names: list[str] | None = None


def test_what_fits_is_made_and_the_rest_left_alone():
  made = schemas.make(Sizes, {'width': 3, 'names': ['a'], 'other': 1}, 'F')
  assert made == Sizes(3, ['a'])


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    ([], r'\[\] is not a JSON object'),
    (None, 'None is not a JSON object'),
    ({}, "Sizes lacks 'width'"),
    ({'width': 101}, 'width is 101; .* from 1 to 100'),
    ({'width': 1, 'names': [3]}, r'names is \[3\]; .* or None'),
    ({'names': 3}, "lacks 'width'. names is 3"),
    ({'width': 1, 'x' * 500: 0}, "has no place for 'xxx[^']*…"),
  ],
)
def test_what_does_not_is_named_with_its_file(raw, message):
  with pytest.raises(errors.DataError, match=f'^F: .*{message}.* Again.$'):
    schemas.make(
      Sizes, raw, 'F', error=errors.DataError, only=True, remedy='Again.'
    )


def test_other_errors_are_left_alone():
  with pytest.raises(errors.CheckpointError, match=r'^as it was$'):
    with schemas.blamed_on('F', errors.DataError):
      raise errors.CheckpointError('as it was')
