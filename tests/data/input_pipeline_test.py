import itertools
import json
import threading

import numpy as np
import pytest
import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from perlhf_jax.data import vocabularies

VOCABULARY = vocabularies.byte_vocabulary()
LENGTHS = {'inputs': 16, 'targets': 8}


@pytest.fixture(autouse=True)
def clean_registry():
  before = set(seqio.TaskRegistry.names())
  yield
  for name in set(seqio.TaskRegistry.names()) - before:
    seqio.TaskRegistry.remove(name)
  for name in [n for n in seqio.MixtureRegistry.names() if n.startswith('toy')]:
    seqio.MixtureRegistry.remove(name)


def add_python_task(name, kind, rows, splits=('train', 'empty')):
  source = sources.PythonSource(
    kind,
    splits,
    lambda split: rows if split == 'train' else [],
    sources.DatasetInfo(),
  )
  return preference_tasks.add_text_task(name, source)


def load(name='toy', lengths=None, **kwargs):
  config = input_pipeline.DatasetConfig(name, lengths or LENGTHS, **kwargs)
  return input_pipeline.load_examples(config, VOCABULARY)


def pairs(count):
  return [
    {'inputs': f'prompt {i}', 'chosen': f'good {i}', 'rejected': f'bad {i}'}
    for i in range(count)
  ]


def train_batch(examples, step):
  return examples.text_batch(examples.train_rows(step))


def text_of(tokens):
  return VOCABULARY.decode([int(t) for t in tokens if t > 1])


def test_text_becomes_batches():
  add_python_task('toy', 'pairwise', pairs(5))
  examples = load(batch_size=4, shuffle=False)
  assert (examples.kind.name, len(examples)) == ('pairwise', 5)
  assert examples.origins[3] == 'train#3'
  batch = train_batch(examples, 1)
  assert batch['prompt_tokens'].shape == (4, 16)
  assert batch['chosen_tokens'].shape == (4, 8)
  assert [text_of(row) for row in batch['prompt_tokens']] == [
    *('prompt 4', 'prompt 0', 'prompt 1', 'prompt 2')
  ]
  assert [text_of(row) for row in batch['rejected_tokens']] == [
    *('bad 4', 'bad 0', 'bad 1', 'bad 2')
  ]
  # Every prompt and response ends with EOS.
  for name in ('prompt', 'chosen', 'rejected'):
    ends = batch[f'{name}_mask'].sum(axis=1) - 1
    assert (batch[f'{name}_tokens'][np.arange(4), ends] == 1).all()


def test_a_run_resumes_where_it_stopped():
  add_python_task('toy', 'pairwise', pairs(11))
  examples = load(batch_size=4, seed=7)
  whole = list(itertools.islice(input_pipeline.train_iterator(examples), 9))
  again = load(batch_size=4, seed=7)
  resumed = itertools.islice(input_pipeline.train_iterator(again, 5), 4)
  for expected, batch in zip(whole[5:], resumed, strict=True):
    for name, array in expected.items():
      np.testing.assert_array_equal(batch[name], array)
  assert any(
    (a['chosen_tokens'] != b['chosen_tokens']).any()
    for a, b in zip(whole[:4], whole[4:8], strict=True)
  )


def test_the_prefetch_thread_ends_with_its_iterator():
  add_python_task('toy', 'pairwise', pairs(4))
  iterator = input_pipeline.train_iterator(load(batch_size=2))
  next(iterator)

  def running():
    return [t for t in threading.enumerate() if t.name.startswith('batches')]

  (thread,) = running()
  iterator.close()
  thread.join(timeout=10)
  assert not running()


def test_evaluation_covers_every_row_once():
  add_python_task('toy', 'pairwise', pairs(5))
  batches = list(input_pipeline.eval_batches(load(batch_size=32), 2))
  assert [batch['example_mask'].tolist() for batch in batches] == [
    [True, True],
    [True, True],
    [True, False],
  ]
  assert text_of(batches[2]['chosen_tokens'][0]) == 'good 4'
  assert not batches[2]['chosen_mask'][1].any()


def test_truncation_keeps_the_end_of_prompts_and_is_counted():
  add_python_task(
    'toy',
    'sft',
    [
      {'inputs': '0123456789abcdefgh', 'targets': 'long response'},
      {'inputs': 'short', 'targets': 'short'},
    ],
  )
  examples = load()
  assert examples.texts(0) == {
    'inputs': '3456789abcdefgh',
    'targets': 'long res',
  }
  assert examples.num_truncated == {'inputs': 1, 'targets': 1}
  assert load(truncate_prompt='keep_start').texts(0)['inputs'] == (
    '0123456789abcde'
  )


def test_max_examples():
  add_python_task('toy', 'pairwise', pairs(5))
  assert len(load(max_examples=3)) == 3
  assert len(load(max_examples=9)) == 5


def test_prompts_need_no_target_length():
  add_python_task('toy', 'prompts', [{'inputs': 'a'}])
  batch = train_batch(load(lengths={'inputs': 4}, batch_size=1), 0)
  assert batch['prompt_tokens'].tolist() == [[100, 1, 0, 0]]


def test_parts_are_disjoint_and_keep_prompts_together():
  add_python_task('toy', 'pairwise', pairs(30) + pairs(30))
  parts = [load(part=(index, 3)) for index in range(3)]
  prompts = [
    [part.texts(row)['inputs'] for row in range(len(part))] for part in parts
  ]
  assert sum(map(len, prompts)) == 60
  assert min(map(len, prompts)) > 6
  for first, second in itertools.combinations(prompts, 2):
    assert not set(first) & set(second)


def test_a_part_that_does_not_exist():
  with pytest.raises(errors.ConfigError, match=r'part is \(2, 2\)'):
    load(part=(2, 2))


def test_long_prompts_can_be_refused():
  rows = [{'inputs': 'short'}, {'inputs': 'much too long'}]
  add_python_task('toy', 'prompts', rows)
  assert len(load(lengths={'inputs': 14}, refuse_long_prompts=True)) == 2
  with pytest.raises(errors.DataError, match='train#1: the prompt has 14 tok'):
    load(lengths={'inputs': 13}, refuse_long_prompts=True)
  assert load(lengths={'inputs': 13}).num_truncated == {'inputs': 1}


def test_prompts_of_any_task_can_be_taken_alone():
  add_python_task('toy', 'pairwise', pairs(5))
  examples = load(batch_size=4)
  alone = examples.prompts()
  assert alone.kind.name == 'prompts'
  for step in range(3):
    whole, batch = train_batch(examples, step), train_batch(alone, step)
    assert set(batch) == {'prompt_tokens', 'prompt_mask', 'example_mask'}
    for name, array in batch.items():
      np.testing.assert_array_equal(array, whole[name])


def write_rows(path, lines):
  path.write_text('\n'.join(lines))
  preference_tasks.add_preference_task(
    'toy',
    'pointwise',
    lambda row: {'inputs': row['p'], 'targets': row['r'], 'label': row['y']},
    files=path.name,
    splits={'train': 1.0},
    base_dir=str(path.parent),
  )


@pytest.mark.parametrize(
  ('line', 'problem'),
  [
    ('{"p": "x", "r":', 'not valid JSON'),
    ('{"p": "x", "r": "y"}', "the field 'y' is missing"),
    ('{"p": "x", "r": "", "y": 1}', 'response .* is empty'),
    ('{"p": "x", "r": "y", "y": 2}', 'neither 0 nor 1'),
  ],
)
def test_a_bad_row_stops_or_is_skipped(tmp_path, line, problem):
  good = json.dumps({'p': 'a', 'r': 'b', 'y': 1})
  path = tmp_path / 'rows.jsonl'
  write_rows(path, [good, line, good])
  with pytest.raises(errors.DataError, match=problem) as caught:
    load()
  assert f'{path}:2' in str(caught.value)
  assert 'SKIP_BAD_ROWS=True' in str(caught.value)
  examples = load(skip_bad_rows=True)
  assert (len(examples), examples.num_skipped) == (2, 1)
  assert examples.origins == [f'{path}:1', f'{path}:3']


def test_identical_pair_is_named():
  add_python_task(
    'toy', 'pairwise', [{'inputs': 'p', 'chosen': 'a', 'rejected': 'a'}]
  )
  with pytest.raises(errors.DataError, match=r'train#0.*identical'):
    load()
  with pytest.raises(errors.DataError, match=r'no usable rows.*identical'):
    load(skip_bad_rows=True)


def test_empty_split_is_an_error():
  add_python_task('toy', 'pairwise', pairs(2))
  with pytest.raises(errors.DataError, match="'empty' of 'toy' has no"):
    load(split='empty')


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'split': 'tset'}, r"no split 'tset'; it has empty, train"),
    ({'name': 'toyy'}, 'Did you mean toy'),
    ({'module': 'no_such_module'}, r"'no_such_module' cannot.*PYTHONPATH"),
    ({'lengths': {'inputs': 8}}, r"needs 'targets'.*Give for example"),
    ({'lengths': {'inputs': 1, 'targets': 8}}, "needs 'inputs' of at least 2"),
    ({'lengths': LENGTHS | {'chosen': 3}}, "unknown entry 'chosen'"),
    ({'batch_size': 0}, 'batch_size is 0; it must be'),
    ({'truncate_prompt': 'left'}, "'left'"),
  ],
)
def test_mistakes_in_the_configuration_are_named(kwargs, message):
  add_python_task('toy', 'pairwise', pairs(2))
  with pytest.raises(errors.ConfigError, match=message):
    load(**kwargs)


def add_seqio_task(name, features, rows, preprocessors=()):
  def dataset(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices(rows)

  return seqio.TaskRegistry.add(
    name,
    seqio.FunctionDataSource(dataset, ['train']),
    output_features=features,
    preprocessors=list(preprocessors),
  )


@pytest.mark.parametrize('append_eos', [False, True])
def test_a_classic_seqio_task_with_the_same_vocabulary(append_eos):
  feature = seqio.Feature(vocabularies.byte_vocabulary(), add_eos=True)
  steps = [seqio.preprocessors.tokenize]
  if append_eos:
    steps.append(seqio.preprocessors.append_eos)
  add_seqio_task(
    'toy',
    {'inputs': feature, 'targets': feature},
    {'inputs': ['ab', 'c'], 'targets': ['x', 'yz']},
    steps,
  )
  batch = train_batch(load(batch_size=2, shuffle=False), 0)
  assert batch['encoder_input_tokens'][:, :4].tolist() == [
    [100, 101, 1, 0],
    [102, 1, 0, 0],
  ]
  assert batch['decoder_target_tokens'][:, :3].tolist() == [
    [123, 1, 0],
    [124, 125, 1],
  ]


def test_tokens_of_another_vocabulary_are_refused():
  feature = seqio.Feature(vocabularies.byte_vocabulary(extra_ids=9))
  add_seqio_task(
    'toy',
    {'inputs': feature, 'targets': feature},
    {'inputs': ['ab'], 'targets': ['x']},
    [seqio.preprocessors.tokenize],
  )
  with pytest.raises(errors.DataError, match=r'ByteVocabulary.*same vocab'):
    load()


@pytest.mark.parametrize('bad', [-1, 384, 2**17, 2**32 + 5])
@pytest.mark.parametrize('name', ['inputs', 'targets'])
def test_token_ids_that_do_not_exist_are_named_by_row(name, bad):
  dtype = tf.int64 if bad > 2**31 else tf.int32
  feature = seqio.Feature(vocabularies.byte_vocabulary(), dtype=dtype)
  rows = {'inputs': [[5, 6], [7, 8], [9, 10]], 'targets': [[5], [6], [7]]}
  rows[name][1][0] = bad
  add_seqio_task(
    'toy',
    {'inputs': feature, 'targets': feature},
    {n: tf.constant(ids, dtype) for n, ids in rows.items()},
  )
  what = {'inputs': 'prompt', 'targets': 'response'}[name]
  with pytest.raises(
    errors.DataError,
    match=rf'train#1: the {what} \({name}\) has the token id {bad}, .* 0 to',
  ):
    load()
  examples = load(skip_bad_rows=True, shuffle=False)
  assert len(examples) == 2 and examples.num_skipped == 1
  assert examples.example(1)['inputs'].tolist() == [9, 10, 1]


def test_classic_text_task_is_checked_too():
  add_seqio_task(
    'toy',
    preference_tasks.text_features('sft'),
    {'inputs': ['ab', 'c'], 'targets': ['x', '']},
  )
  with pytest.raises(errors.DataError, match=r'toy/train#1.*empty'):
    load()


def test_features_of_no_kind_are_named():
  feature = seqio.Feature(
    seqio.PassThroughVocabulary(0), dtype=tf.string, rank=0
  )
  add_seqio_task('toy', {'question': feature}, {'question': ['a']})
  with pytest.raises(
    errors.ConfigError, match=r'question.*pairwise has inputs'
  ):
    load()


def test_features_of_another_type_are_refused():
  feature = seqio.ContinuousFeature(rank=1, dtype=tf.float32)
  add_seqio_task('toy', {'inputs': feature}, {'inputs': [[1.0]]})
  with pytest.raises(errors.DataError, match='dtype float32'):
    load(lengths={'inputs': 4})


def test_mixtures_keep_their_rates():
  add_python_task('toy_a', 'pairwise', pairs(3))
  add_python_task('toy_b', 'pairwise', [dict(p, inputs='b') for p in pairs(2)])
  seqio.MixtureRegistry.add('toy', [('toy_a', 1.0), ('toy_b', 3.0)])
  examples = load(batch_size=4096)
  assert len(examples) == 5
  tokens = train_batch(examples, 0)['prompt_tokens']
  share = np.mean(tokens[:, 0] == VOCABULARY.encode('b')[0])
  assert share == pytest.approx(0.75, abs=0.001)


def test_a_rate_that_cannot_be_computed_is_named():
  add_python_task('toy_a', 'pairwise', pairs(3))
  seqio.MixtureRegistry.add('toy', [('toy_a', seqio.mixing_rate_num_examples)])
  with pytest.raises(errors.ConfigError, match=r"'toy_a' in mixture 'toy'"):
    load()
