from collections import Counter

import hypothesis
from hypothesis import strategies as st
import numpy as np

from perlhf_jax.data import batch_order
from perlhf_jax.data import example_order


def make(sizes, batch_size, window, rates=None, seed=0):
  rates = [1.0] * len(sizes) if rates is None else rates
  order = example_order.ExampleOrder(sizes, rates, seed)
  classes = np.arange(sum(sizes)) % 3
  return batch_order.BatchOrder(order, classes, batch_size, window), order


@hypothesis.given(
  size=st.integers(1, 40),
  batch_size=st.integers(1, 6),
  window=st.integers(1, 12),
  seed=st.integers(0, 3),
)
def test_each_epoch_holds_every_row_once(size, batch_size, window, seed):
  batches, _ = make([size], batch_size, window, seed=seed)
  seen = [row for step in range(size) for row in batches.rows(step).tolist()]
  # `batch_size` epochs; a batch with the end of one in its middle has rows of
  # both.
  for epoch in range(batch_size):
    stop = (epoch + 1) * size
    whole, rest = divmod(stop, batch_size)
    before = Counter(seen[: whole * batch_size])
    assert sum(before.values()) == stop - rest
    assert set(before.values()) <= {epoch, epoch + 1}
    if not rest:
      assert before == dict.fromkeys(range(size), epoch + 1)


@hypothesis.given(
  sizes=st.lists(st.integers(5, 40), min_size=2, max_size=3),
  window=st.integers(1, 9),
)
def test_mixtures_keep_every_row_in_its_window(sizes, window):
  batches, order = make(sizes, 4, window, [float(size) for size in sizes])
  for start in (0, 5 * window, 1023 // window * window):
    seen = [batches.rows(start + i) for i in range(window)]
    stream = order.rows(start * 4, (start + window) * 4)
    assert Counter(np.concatenate(seen)) == Counter(stream)


def test_epochs_of_a_mixture_hold_every_row_once():
  sizes = [4096, 4096 * 3]
  batches, _ = make(sizes, 64, 50, [1.0, 3.0])
  steps = sum(sizes) // 64
  for epoch in range(2):
    rows = [batches.rows(epoch * steps + step) for step in range(steps)]
    assert sorted(np.concatenate(rows)) == list(range(sum(sizes)))


def test_a_small_part_of_a_mixture_is_not_repeated_in_a_batch():
  batches, _ = make([1000, 40], 8, 50, [1.0, 1.0])
  repeated = sum(
    len(rows) - len(set(rows.tolist()))
    for rows in map(batches.rows, range(100))
  )
  # 400 of 800 rows are of the 40: each comes ten times.
  assert repeated <= 16


@hypothesis.given(st.lists(st.integers(0, 60), min_size=1, max_size=9))
def test_a_batch_is_a_function_of_seed_and_step(steps):
  fresh = make([37], 4, 5, seed=3)[0]
  after = make([37], 4, 5, seed=3)[0]
  for step in range(20):
    after.rows(step)
  for step in steps:
    np.testing.assert_array_equal(fresh.rows(step), after.rows(step))


def test_seeds_and_epochs_differ():
  first, other = make([60], 4, 15)[0], make([60], 4, 15, seed=1)[0]
  epoch = [first.rows(step).tolist() for step in range(15)]
  assert epoch != [other.rows(step).tolist() for step in range(15)]
  assert epoch != [first.rows(step).tolist() for step in range(15, 30)]


def test_batches_are_of_one_class_and_visited_at_random():
  batches, _ = make([600], 5, 60)
  classes = [set((batches.rows(step) % 3).tolist()) for step in range(120)]
  # 200 rows of each class: of a window, two batches at most are of two.
  assert sum(len(each) > 1 for each in classes) <= 4
  visited = [min(each) for each in classes[:60]]
  assert visited != sorted(visited)
  assert max(classes[0]) == 2  # The longest first.


def test_within_a_class_rows_come_at_random():
  batches, _ = make([900], 10, 90)
  together = [batches.rows(step) for step in range(90)]
  spread = np.mean([np.ptp(rows) for rows in together])
  assert spread > 600
