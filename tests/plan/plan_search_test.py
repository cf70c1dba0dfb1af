from hypothesis import given
from hypothesis import strategies as st

from perlhf_jax.plan import search as search_lib


@given(limit=st.integers(0, 5000), step=st.integers(1, 64))
def test_the_largest_multiple_that_fits(limit, step):
  asked = []

  def fits(size):
    asked.append(size)
    return size <= limit

  expected = limit // step * step or None
  assert search_lib.largest(fits, step) == expected
  assert all(size % step == 0 for size in asked)
  # Each may take minutes.
  assert len(asked) == len(set(asked))
  assert len(asked) <= 2 * (limit // step).bit_length() + 2


def test_it_stops_where_everything_fits():
  assert search_lib.largest(lambda size: True, 8) >= 8 * 2**14
