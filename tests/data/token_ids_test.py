import numpy as np
import pytest

from perlhf_jax.data import token_columns
from perlhf_jax.data import token_ids


def _rows(*rows, dtype=np.int32):
  return [np.array(row, dtype) for row in rows]


@pytest.mark.parametrize('dtype', [np.int32, np.int64])
def test_rows_with_ids_that_do_not_exist_are_found(dtype):
  rows = _rows([1, 9], [], [3, 10, 12], [-1], [0], dtype=dtype)
  assert list(token_ids.find_bad(rows, 10)) == [(2, 10), (3, -1)]
  assert list(token_ids.find_bad(rows, 13)) == [(3, -1)]
  assert list(token_ids.find_bad(rows[:2], 10)) == []
  assert list(token_ids.find_bad([], 10)) == []


def test_an_id_of_64_bits_is_not_cut_to_one_that_exists():
  rows = _rows([2**32 + 5], dtype=np.int64)
  assert list(token_ids.find_bad(rows, 10)) == [(0, 2**32 + 5)]


@pytest.mark.parametrize('largest', [9, 70_000])
def test_a_column_finds_the_place(largest):
  column = token_columns.TokenColumn(_rows([1, 2], [3, largest, 4]))
  assert column.find_beyond(largest + 1) is None
  assert column.find_beyond(largest) == 3
  assert token_columns.TokenColumn([]).find_beyond(1) is None
