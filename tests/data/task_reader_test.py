"""Reading many rows at a time is as if they came one by one."""

import json
import zlib

import numpy as np
import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import task_reader
from perlhf_jax.data import vocabularies

VOCABULARY = vocabularies.byte_vocabulary()
LENGTHS = {'inputs': 12, 'targets': 6}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(task_reader, '_CHUNK', 4)


def records(count, bad=(), long=()):
  return [
    {
      'inputs': '' if i in bad else f'prompt {i}' + 'x' * 9 * (i in long),
      'chosen': f'good {i}' * (1 + i % 3),
      'rejected': f'bad {i}',
      'margin': i / 7,
    }
    for i in range(count)
  ]


@pytest.fixture
def toy(tmp_path):
  def add(rows):
    path = tmp_path / 'toy.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    preference_tasks.add_preference_task(
      'toy', 'pairwise', dict, {'train': 'toy.jsonl'}, base_dir=str(tmp_path)
    )
    return lambda **options: input_pipeline.load_examples(
      input_pipeline.DatasetConfig('toy', LENGTHS, **options), VOCABULARY
    )

  yield add
  seqio.TaskRegistry.remove('toy')


def slowly(*, skip=False, part=None, most=None):
  """The rows through SeqIO and TensorFlow, one by one."""
  rows = seqio.get_mixture_or_task('toy').get_dataset(
    sequence_length=None, split='train', shuffle=False, num_epochs=1
  )
  found = []
  for row in rows.as_numpy_iterator():
    if row['problem'] or len(found) == most:
      assert skip or len(found) == most
      continue
    tokens = {
      name: [*VOCABULARY.encode(row[name].decode()), 1]
      for name in ('inputs', 'chosen', 'rejected')
    }
    prompt = np.array(tokens['inputs'], np.int32).tobytes()
    if part and zlib.crc32(prompt) % part[1] != part[0]:
      continue
    cut = {n: t if len(t) <= 6 else [*t[:5], 1] for n, t in tokens.items()}
    cut['inputs'] = tokens['inputs'][-12:]
    found.append((row['origin'].decode(), cut, row['margin']))
  return found


def found(examples):
  return [
    (
      examples.origins[i],
      {n: examples.columns[n][i].tolist() for n in ('inputs', *CHOICES)},
      examples.columns['margin'][i],
    )
    for i in range(len(examples))
  ]


CHOICES = 'chosen', 'rejected'


@pytest.mark.parametrize('count', [1, 3, 4, 5, 12, 13])
def test_the_rows_are_those_of_the_slow_way(toy, count):
  load = toy(records(count, long=(2, 7)))
  assert found(load()) == slowly()


@pytest.mark.parametrize('most', [1, 4, 5, None])
def test_parts_and_limits_count_examples(toy, most):
  load = toy(records(30, bad=(3, 9)))
  examples = load(max_examples=most, part=(1, 2), skip_bad_rows=True)
  assert found(examples) == slowly(skip=True, part=(1, 2), most=most)
  assert most is None or len(examples) == most
  # Unusable rows behind the last example are not looked at.
  last = 30 if most is None else int(examples.origins[-1].split(':')[-1])
  assert examples.num_skipped == sum(line <= last for line in (4, 10))


@pytest.mark.parametrize('most', [6, 7])
def test_what_stands_behind_the_last_example_is_no_error(toy, most):
  load = toy(records(20, bad=(6,)))
  if most == 6:
    assert len(load(max_examples=most)) == 6
    return
  with pytest.raises(errors.DataError, match=r'toy\.jsonl:7: the prompt'):
    load(max_examples=most)


@pytest.mark.parametrize(('long', 'bad'), [(5, 6), (6, 5), (1, 9), (9, 1)])
def test_the_first_mistake_stops_the_reading(toy, long, bad):
  load = toy(records(12, bad=(bad,), long=(long,)))
  first = min(long, bad) + 1
  what = 'the prompt has 18 tokens' if long < bad else 'is empty'
  with pytest.raises(errors.DataError, match=rf'toy\.jsonl:{first}.*{what}'):
    load(refuse_long_prompts=True)


def test_an_error_of_the_source_comes_behind_the_rows_before_it(
  tmp_path, toy, monkeypatch
):
  def rows(self, split):
    for index, row in enumerate(records(9, bad=(2,))):
      if index == 6:
        raise errors.DataError('the source broke')
      yield {**row, 'origin': str(index), 'problem': 'bad' * (index == 2)}

  load = toy(records(1))
  source = type(seqio.get_mixture_or_task('toy').source)
  monkeypatch.setattr(source, 'rows', rows)
  with pytest.raises(errors.DataError, match='2: bad'):
    load()
  with pytest.raises(errors.DataError, match='the source broke'):
    load(skip_bad_rows=True)
  assert load(skip_bad_rows=True, max_examples=5).origins == list('01345')


def test_counts_are_those_of_all_chunks(toy):
  examples = toy(records(12, bad=(0, 10), long=(1, 9)))(skip_bad_rows=True)
  assert examples.num_skipped == 2
  assert examples.num_truncated == {'inputs': 2, 'chosen': 10, 'rejected': 1}
