"""Fingerprints of data: every row and their order count, nothing else."""

import json

import numpy as np
import pytest

from perlhf_jax.data import data_fingerprint
from perlhf_jax.data import example_order
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import feature_converters
from perlhf_jax.data import images
from perlhf_jax.data import kinds
from perlhf_jax.data import token_columns

PROMPTS = ([5, 6, 1], [7, 1], [8, 9, 10, 1])
RESPONSES = ([5, 1], [6, 7, 1], [8, 1])
LABELS = (0.0, 1.0, 1.0)


def _column(rows):
  return token_columns.TokenColumn([np.array(row, np.int32) for row in rows])


def _describe(
  prompts=PROMPTS,
  responses=RESPONSES,
  labels=LABELS,
  sizes=None,
  rates=(1.0,),
  shuffle=True,
  pictures=None,
  batch_size=2,
  origin='a.jsonl',
):
  examples = examples_lib.Examples(
    name='toy',
    split='train',
    columns={
      'inputs': _column(prompts),
      'targets': _column(responses),
      'label': np.array(labels, np.float32),
    },
    origins=[f'{origin}:{i}' for i in range(len(prompts))],
    converter=feature_converters.Converter(kinds.POINTWISE, 8, 6),
    order=example_order.ExampleOrder(
      sizes or [len(prompts)], rates, shuffle=shuffle
    ),
    batch_size=batch_size,
    vocabulary=None,
    images=None if pictures is None else images.ImageColumn(pictures),
  )
  described = data_fingerprint.describe(examples)
  assert json.loads(json.dumps(described)) == described
  return described


def test_rows_are_described():
  described = _describe()
  fingerprint = described.pop('fingerprint')
  assert described == {'rows': [3], 'rates': [1.0], 'shuffle': True}
  assert len(fingerprint) == 16 and int(fingerprint, 16)


def test_where_files_lie_and_how_batches_are_cut_is_of_no_account():
  assert _describe(batch_size=3, origin='/elsewhere/b.jsonl') == _describe()


def _swapped(rows):
  return rows[1], rows[0], rows[2]


@pytest.mark.parametrize(
  'change',
  [
    {'prompts': _swapped(PROMPTS)},
    {
      'prompts': _swapped(PROMPTS),
      'responses': _swapped(RESPONSES),
      'labels': _swapped(LABELS),
    },
    {'prompts': ([5, 6, 1], [7, 1], [8, 9, 11, 1])},
    # The same tokens, cut elsewhere.
    {'prompts': ([5, 6, 1, 7], [1], [8, 9, 10, 1])},
    {'labels': (0.0, 1.0, 0.0)},
    {'prompts': PROMPTS[:2], 'responses': RESPONSES[:2], 'labels': LABELS[:2]},
    {'prompts': RESPONSES, 'responses': PROMPTS},
    {'sizes': [1, 2], 'rates': (1.0, 1.0)},
    {'shuffle': False},
  ],
)
def test_every_change_of_rows_is_seen(change):
  assert _describe(**change) != _describe()


def test_rates_of_a_mixture_count():
  one, other = (
    _describe(sizes=[1, 2], rates=rates) for rates in ((1, 1), (1, 2))
  )
  assert one['fingerprint'] == other['fingerprint']
  assert one != other


def test_images_count_by_content_or_by_name_and_size(tmp_path):
  def describe(*pictures):
    return _describe(pictures=pictures)['fingerprint']

  rows = (b'a', b'b'), (b'a',), (b'c',)
  assert describe(*rows) != _describe()['fingerprint']
  assert describe(*rows) == describe(*rows)
  assert describe((b'b', b'a'), (b'a',), (b'c',)) != describe(*rows)
  assert describe((b'a', b'b'), (b'b',), (b'c',)) != describe(*rows)
  assert describe((b'a', b'b'), (b'a',), (b'd',)) != describe(*rows)
  files = []
  for folder in 'here', 'moved':
    (tmp_path / folder).mkdir()
    files.append(tmp_path / folder / 'x.png')
    files[-1].write_bytes(b'12345')
  here, moved = (((str(f),), (b'a',), (b'a',)) for f in files)
  assert describe(*here) == describe(*moved)
  files[1].write_bytes(b'123456')
  assert describe(*here) != describe(*moved)
  # What lies in a bucket is not asked for again.
  assert describe(('gs://nowhere/x.png',), (b'a',), (b'a',))
