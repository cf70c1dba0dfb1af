import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.data import example_order
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import feature_converters
from perlhf_jax.data import kinds
from perlhf_jax.data import token_columns
from perlhf_jax.data import vocabularies

VOCABULARY = vocabularies.byte_vocabulary()


def make(count, batch_size=4, **kwargs):
  prompts = [
    feature_converters.tokenize(VOCABULARY, f'p{i}' * (i % 3))
    for i in range(count)
  ]
  responses = [
    feature_converters.tokenize(VOCABULARY, f'r{i}') for i in range(count)
  ]
  return examples_lib.Examples(
    name='toy',
    split='train',
    columns={
      'inputs': token_columns.TokenColumn(prompts),
      'targets': token_columns.TokenColumn(responses),
      'label': np.arange(count, dtype=np.float32) % 2,
    },
    origins=[f'toy#{i}' for i in range(count)],
    converter=feature_converters.Converter(kinds.POINTWISE, 8, 6),
    order=example_order.ExampleOrder([count], [1.0], **kwargs),
    batch_size=batch_size,
    vocabulary=VOCABULARY,
  )


def train_batch(examples, step, part=None):
  return examples.text_batch(examples.train_rows(step), part)


@hypothesis.given(st.lists(st.lists(st.integers(0, 99), max_size=5)))
def test_token_columns_keep_rows(rows):
  column = token_columns.TokenColumn([np.array(r, np.int32) for r in rows])
  assert len(column) == len(rows)
  assert [column[i].tolist() for i in range(len(rows))] == rows


@hypothesis.given(
  count=st.integers(1, 9),
  step=st.integers(0, 7),
  part=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True),
)
def test_a_host_gets_its_rows_of_the_global_batch(count, step, part):
  examples = make(count)
  whole = train_batch(examples, step)
  mine = train_batch(examples, step, np.array(part))
  for name, array in whole.items():
    np.testing.assert_array_equal(mine[name], array[part])


def test_prompts_are_padded_as_the_global_batch_needs():
  examples = make(10, shuffle=False)
  examples.columns['inputs'] = token_columns.TokenColumn(
    [np.full(n, 5, np.int32) for n in (3, 40, 2, 2, 3, 3, 3, 3, 3, 3)]
  )
  examples.converter = feature_converters.Converter(kinds.POINTWISE, 64, 6)
  examples = examples.prompts()
  for part in (None, np.array([0]), np.array([1])):
    assert train_batch(examples, 0, part)['prompt_tokens'].shape[1] == 64
    assert train_batch(examples, 1, part)['prompt_tokens'].shape[1] == 16


def test_batches_follow_the_order():
  examples = make(10, seed=3)
  rows = examples.order.rows(8, 12)
  labels = train_batch(examples, 2)['labels']
  assert labels.tolist() == [float(row % 2) for row in rows]
  np.testing.assert_array_equal(
    train_batch(examples, 2)['response_tokens'],
    examples.converter([examples.example(int(r)) for r in rows])[
      'response_tokens'
    ],
  )


def test_a_data_set_smaller_than_a_batch_is_repeated():
  batch = train_batch(make(3, batch_size=7), 0)
  assert batch['example_mask'].all()
  assert len({tuple(row) for row in batch['response_tokens'].tolist()}) == 3


def test_evaluation_holds_every_row_once_and_pads():
  examples = make(6)
  batches = [examples.text_batch(np.arange(i, i + 4)) for i in (0, 4)]
  masks = [batch['example_mask'] for batch in batches]
  assert [mask.tolist() for mask in masks] == [
    [True] * 4,
    [True, True, False, False],
  ]
  tokens = np.concatenate([batch['response_tokens'] for batch in batches])
  texts = [
    VOCABULARY.decode(row[row > 1].tolist())
    for row in tokens[np.concatenate(masks)]
  ]
  assert texts == [f'r{i}' for i in range(6)]


def test_texts_are_for_people():
  assert make(6).texts(5) == {'inputs': 'p5p5', 'targets': 'r5', 'label': 1.0}


def test_tokens_that_a_model_does_not_have_are_named_by_row():
  examples = make(5)
  largest = max(examples.columns[n].values.max() for n in ('inputs', 'targets'))
  examples.check_ids(int(largest) + 1)
  with pytest.raises(
    errors.DataError,
    match=rf'toy#[0-4]: .* has the token id {largest}, and the model has ids',
  ):
    examples.check_ids(int(largest))
