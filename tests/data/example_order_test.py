from collections import Counter

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.data import example_order

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=3)


def make(sizes, rates=None, **kwargs):
  rates = [1.0] * len(sizes) if rates is None else rates
  return example_order.ExampleOrder(sizes, rates, **kwargs)


@hypothesis.given(size=st.integers(1, 30), seed=st.integers(-5, 2**40))
def test_each_epoch_holds_every_row_once(size, seed):
  order = make([size], seed=seed)
  rows = order.rows(0, 3 * size).reshape(3, size)
  for epoch in rows:
    assert sorted(epoch.tolist()) == list(range(size))


def test_epochs_and_seeds_differ():
  order = make([50], seed=1)
  first, second = order.rows(0, 50), order.rows(50, 100)
  assert first.tolist() != second.tolist()
  assert first.tolist() != list(range(50))
  assert first.tolist() != make([50], seed=2).rows(0, 50).tolist()
  assert first.tolist() == make([50], seed=1).rows(0, 50).tolist()


@hypothesis.given(
  sizes=SIZES,
  start=st.integers(0, 9000),
  length=st.integers(1, 200),
  shuffle=st.booleans(),
)
def test_a_position_does_not_depend_on_what_is_asked_with_it(
  sizes, start, length, shuffle
):
  rates = [float(size) for size in sizes]
  order = make(sizes, rates, seed=3, shuffle=shuffle)
  together = order.rows(start, start + length)
  fresh = make(sizes, rates, seed=3, shuffle=shuffle)
  middle = start + length // 2
  apart = [*fresh.rows(middle, start + length), *fresh.rows(start, middle)]
  half = length - length // 2
  assert together.tolist() == [*apart[half:], *apart[:half]]


def test_without_shuffling_rows_come_in_order():
  assert make([3], shuffle=False).rows(2, 8).tolist() == [2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize('rates', [(1.0, 3.0), (2.0, 6.0), (10.0, 0.001)])
def test_mixtures_keep_their_rates(rates):
  sizes = [10, 20]
  rows = make(sizes, rates, seed=5).rows(0, 4096)
  share = (rows >= 10).mean()
  assert share == pytest.approx(rates[1] / sum(rates), abs=1 / 4096)
  assert share > 0


def test_each_task_of_a_mixture_goes_through_its_epochs():
  rows = make([10, 7], (1.0, 1.0), seed=5).rows(0, 3 * 4096)
  for low, high in ((0, 10), (10, 17)):
    own = rows[(rows >= low) & (rows < high)]
    whole = own[: len(own) // (high - low) * (high - low)]
    for epoch in whole.reshape(-1, high - low):
      assert sorted(epoch.tolist()) == list(range(low, high))


def test_mixtures_are_interleaved_without_shuffling_too():
  rows = make([5, 5], (1.0, 1.0), shuffle=False).rows(0, 400)
  tasks = rows // 5
  assert 0.3 < np.mean(tasks[1:] != tasks[:-1]) < 0.7
  assert rows[tasks == 0].tolist()[:7] == [0, 1, 2, 3, 4, 0, 1]


def test_a_rate_of_zero_is_never_drawn():
  counts = Counter((make([4, 4], (1.0, 0.0)).rows(0, 8192) // 4).tolist())
  assert counts == {0: 8192}


def test_impossible_rates_are_an_error():
  with pytest.raises(errors.ConfigError, match='rates of a mixture'):
    make([4, 4], (1.0, -1.0))
  with pytest.raises(ValueError, match='differ'):
    make([4], (1.0, 1.0))
