import hypothesis
from hypothesis import strategies as st
import numpy as np

from perlhf_jax.data import padding_lengths

LENGTHS = st.lists(
  st.tuples(st.integers(1, 400), st.integers(1, 90)), min_size=1, max_size=60
)


def dialogues(count, seed=0):
  """Lengths as those of HH-RLHF: few prompts are long."""
  rng = np.random.default_rng(seed)
  return np.stack(
    [
      np.clip(rng.lognormal(4.5, 0.8, count), 5, 1024).astype(np.int64),
      np.clip(rng.lognormal(4.0, 0.7, count), 3, 128).astype(np.int64),
    ],
    axis=1,
  )


@hypothesis.given(LENGTHS, st.integers(1, 8), st.integers(0, 2))
def test_every_example_fits_and_the_shapes_are_few(lengths, most, responses):
  lengths = np.array(lengths)
  padding = padding_lengths.choose(lengths, (400, 90), responses, most)
  assert 1 <= len(padding.shapes) <= most
  assert len(set(padding.shapes)) == len(padding.shapes)
  costs = [padding.positions(shape) for shape in padding.shapes]
  assert costs == sorted(costs)
  for row, number in zip(lengths, padding.classes(lengths), strict=True):
    fitting = [
      i for i, shape in enumerate(padding.shapes) if (row <= shape).all()
    ]
    assert number == fitting[0]
    assert padding.fit(row[None]) == padding.shapes[number]
  assert (lengths.max(axis=0) <= padding.shapes[-1]).all()
  assert (np.array(padding.shapes) <= (400, 90)).all()


def test_shapes_do_not_depend_on_the_order_of_examples():
  lengths = dialogues(300)
  chosen = padding_lengths.choose(lengths, (1024, 128), 2, 8)
  assert chosen == padding_lengths.choose(lengths[::-1], (1024, 128), 2, 8)


def test_texts_of_almost_one_length_get_one_shape():
  lengths = np.array([[20, 9], [31, 12], [32, 16], [25, 3]])
  padding = padding_lengths.choose(lengths, (64, 32), 1, 8)
  assert padding.shapes == ((32, 16),)


def test_the_largest_shape_ends_at_the_limit():
  lengths = np.array([[100, 33]] * 50 + [[5, 2]] * 50)
  padding = padding_lengths.choose(lengths, (100, 33), 2, 8)
  assert padding.shapes == ((16, 16), (100, 33))


def test_more_shapes_leave_less_padding():
  lengths = dialogues(2000)

  def cost(most):
    padding = padding_lengths.choose(lengths, (1024, 128), 2, most)
    numbers = padding.classes(lengths)
    return sum(padding.positions(padding.shapes[i]) for i in numbers)

  costs = [cost(most) for most in (1, 2, 4, 8)]
  assert costs == sorted(costs, reverse=True)
  assert costs[-1] < 0.4 * costs[0]


def test_prompts_alone_have_no_responses():
  lengths = np.array([[10, 0]] * 9 + [[500, 0]])
  padding = padding_lengths.choose(lengths, (512, 0), 0, 8)
  assert padding.shapes == ((16, 0), (512, 0))
