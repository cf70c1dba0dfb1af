"""Batches of examples of ragged lengths, from files of tasks to arrays."""

import itertools

import numpy as np
import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from perlhf_jax.data import vocabularies

VOCABULARY = vocabularies.byte_vocabulary()
LENGTHS = {'inputs': 512, 'targets': 64}
COUNT = 300


def _rows(kind, offset=0):
  rng = np.random.default_rng(offset)
  prompts = np.clip(rng.lognormal(4.0, 1.0, COUNT), 8, 511).astype(int)
  answers = np.clip(rng.lognormal(3.0, 0.7, (2, COUNT)), 5, 63).astype(int)

  def text(number, length, letter):
    return f'{letter}{offset + number}'.ljust(length, letter)

  for i in range(COUNT):
    yield {'inputs': text(i, prompts[i], 'p')} | {
      'pairwise': {
        'chosen': text(i, answers[0, i], 'c'),
        'rejected': text(i, answers[1, i], 'r'),
      },
      'pointwise': {'targets': text(i, answers[0, i], 't'), 'label': i % 2},
      'sft': {'targets': text(i, answers[0, i], 't')},
      'prompts': {},
    }[kind]


@pytest.fixture(autouse=True, scope='module')
def tasks():
  kinds = ('pairwise', 'pointwise', 'sft', 'prompts')
  names = {f'ragged_{kind}': (kind, 0) for kind in kinds}
  names['ragged_more'] = 'pairwise', 1000
  for name, (kind, offset) in names.items():
    source = sources.PythonSource(
      kind,
      ('train',),
      lambda split, kind=kind, offset=offset: list(_rows(kind, offset)),
      sources.DatasetInfo(),
    )
    preference_tasks.add_text_task(name, source)
  seqio.MixtureRegistry.add(
    'ragged_mixture', [('ragged_pairwise', 1.0), ('ragged_more', 2.0)]
  )
  yield
  seqio.MixtureRegistry.remove('ragged_mixture')
  for name in names:
    seqio.TaskRegistry.remove(name)


def load(name, batch_size=8, **kwargs):
  config = input_pipeline.DatasetConfig(
    name, LENGTHS, batch_size=batch_size, **kwargs
  )
  return input_pipeline.load_examples(config, VOCABULARY)


def _shape(batch):
  return tuple(
    x.shape[1] for name, x in sorted(batch.items()) if name.endswith('_tokens')
  )


def _steps(examples, first, last, part=None):
  batches = input_pipeline.train_iterator(examples, first, part)
  return list(itertools.islice(batches, last - first))


@pytest.mark.parametrize(
  'name', [f'ragged_{k}' for k in ('pairwise', 'pointwise', 'sft', 'prompts')]
)
def test_shapes_are_few_and_padding_is_less(name):
  by_length, mixed = load(name), load(name, length_buckets=0)
  steps = 2 * COUNT // 8
  shapes = {_shape(batch) for batch in _steps(by_length, 0, steps)}
  assert 2 <= len(shapes) <= 8
  share = by_length.padding_share(0, steps)
  assert share < 0.5
  assert share < 0.75 * mixed.padding_share(0, steps)


@pytest.mark.parametrize('name', ['ragged_pairwise', 'ragged_mixture'])
def test_the_share_of_padding_is_that_of_the_arrays(name):
  examples = load(name, length_window=7)
  batches = _steps(examples, 3, 20)
  masks = [
    batch[f'{part}_mask']
    for batch in batches
    for part in ('prompt', 'chosen', 'rejected')
  ]
  padding = sum((~mask).sum() for mask in masks)
  share = padding / sum(mask.size for mask in masks)
  assert examples.padding_share(3, 20) == pytest.approx(share, rel=1e-12)


def test_the_log_says_how_much_is_padding():
  examples = load('ragged_pairwise', batch_size=10)
  share = examples.padding_share(0, 30)
  mixed = load('ragged_pairwise', batch_size=10, length_buckets=1)
  whole = mixed.padding_share(0, 30)
  shapes = [
    f'{prompt}+{response}' for prompt, response in examples.padding.shapes
  ]
  assert examples.describe_padding() == (
    f'batches are padded to (prompt+response tokens) {", ".join(shapes)}.'
    f' {share:.1%} of the computed tokens are padding; with the shape 512+64'
    f' alone it would be {whole:.1%}.'
  )


@pytest.mark.parametrize('name', ['ragged_pairwise', 'ragged_mixture'])
def test_parts_of_hosts_make_the_global_batch_in_one_shape(name):
  examples = load(name, length_window=10)
  whole = _steps(examples, 0, 60)
  parts = [np.array([0, 1, 6, 7]), np.array([2, 3, 4, 5])]
  hosts = [_steps(load(name, length_window=10), 0, 60, p) for p in parts]
  for step, batch in enumerate(whole):
    for array_name, array in batch.items():
      for part, host in zip(parts, hosts, strict=True):
        np.testing.assert_array_equal(host[step][array_name], array[part])


@pytest.mark.parametrize('name', ['ragged_pairwise', 'ragged_mixture'])
def test_a_run_resumes_across_the_end_of_an_epoch(name):
  whole = _steps(load(name, length_window=10, seed=5), 0, 90)
  for first in (33, 38, 74, 76):
    for expected, batch in zip(
      whole[first:],
      _steps(load(name, length_window=10, seed=5), first, 90),
      strict=True,
    ):
      for array_name, array in expected.items():
        np.testing.assert_array_equal(batch[array_name], array)


def test_rows_of_a_batch_are_those_of_today_in_other_batches():
  examples = load('ragged_pairwise', batch_size=10, length_window=15)
  mixed = load('ragged_pairwise', batch_size=10, length_buckets=0)
  for first in (0, 15, 30, 45):
    window = range(first, first + 15)
    assert sorted(np.concatenate([*map(examples.train_rows, window)])) == (
      sorted(np.concatenate([*map(mixed.train_rows, window)]))
    )
  for step in range(4):
    np.testing.assert_array_equal(
      mixed.train_rows(step), mixed.order.rows(10 * step, 10 * step + 10)
    )
    assert _shape(mixed.text_batch(mixed.train_rows(step))) == (64, 512, 64)


def test_without_shuffling_batches_are_padded_and_stay_in_order():
  examples = load('ragged_pairwise', shuffle=False)
  assert examples.train_rows(3).tolist() == list(range(24, 32))
  shapes = {_shape(examples.text_batch(examples.train_rows(i))) for i in [3, 4]}
  assert all(prompt <= 512 for _, prompt, _ in shapes)


@pytest.mark.parametrize('batch_size', [7, 64])
def test_evaluation_holds_every_example_once_and_names_it(batch_size):
  examples = load('ragged_pointwise')
  batches = list(input_pipeline.eval_batches(examples, batch_size))
  rows = np.concatenate(
    [batch['example_rows'][batch['example_mask']] for batch in batches]
  )
  assert sorted(rows) == list(range(COUNT))
  assert len({_shape(batch) for batch in batches}) <= 8
  assert _shape(batches[0]) == max(map(_shape, batches))
  for batch in batches:
    for row, tokens, is_example in zip(
      batch['example_rows'],
      batch['response_tokens'],
      batch['example_mask'],
      strict=True,
    ):
      if is_example:
        expected = examples.example(int(row))['targets']
        np.testing.assert_array_equal(tokens[: len(expected)], expected)
  lone = load('ragged_pointwise', length_buckets=0)
  batches = list(input_pipeline.eval_batches(lone, 64))
  rows = np.concatenate([batch['example_rows'] for batch in batches])
  assert rows.tolist() == list(range(320))


@pytest.mark.parametrize(
  ('option', 'message'),
  [
    ({'length_window': 0}, r'length_window is 0; .* at least 1'),
    ({'length_buckets': 9}, r'length_buckets is 9; .* from 0 to 8'),
    ({'length_buckets': -1}, r'length_buckets is -1'),
  ],
)
def test_impossible_options_are_named(option, message):
  with pytest.raises(errors.ConfigError, match=message):
    load('ragged_pairwise', **option)
