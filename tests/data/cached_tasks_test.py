import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import cached_tasks
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from perlhf_jax.data import task_modules
from perlhf_jax.data import vocabularies

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TASK = 'taskmaster_coffee_rm'
SPLITS = {'train': 0.8, 'validation': 0.1, 'test': 0.1}


def record(index, reward):
  turn = {'role': 'user', 'text': f'order {index}'}
  return {
    'context': json.dumps([turn]),
    'generation': json.dumps({'role': 'agent', 'text': f'Here is {index}.'}),
    'reward': reward,
  }


def rows_without_test_split(count):
  """Rows of which a hash of the prompt puts none into the test split."""
  rows = []
  for index in range(2 * count):
    prompt = f'user: order {index}\nagent:'
    if sources.split_by_hash(prompt, SPLITS) != 'test' and len(rows) < count:
      # One row is unusable: no label is 7.
      rows.append(record(index, 7 if len(rows) == 9 else float(index % 2)))
  return rows


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A data folder with two files, and what the command made of it."""
  data = tmp_path_factory.mktemp('data')
  cache = tmp_path_factory.mktemp('cache')
  rows = rows_without_test_split(60)
  for name, part in (('00', rows[:25]), ('01', rows[25:])):
    path = data / f'TM-4-2024/reward/reward_{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(part))
  search = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'seqio.scripts.cache_tasks_main'),
      *(f'--tasks={TASK}', '--module_import=tasks.taskmaster'),
      *(f'--output_cache_dir={cache}', '--min_shards=3'),
      '--pipeline_options=--runner=FnApiRunner',
    ],
    capture_output=True,
    text=True,
    check=False,
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(filter(None, search)),
      sources.DATA_DIR_VARIABLE: str(data),
    },
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return data, cache


@pytest.fixture
def cached(folders, monkeypatch):
  data, cache = folders
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(data))
  monkeypatch.setenv(cached_tasks.CACHE_DIR_VARIABLE, str(cache))


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
  monkeypatch.delenv(cached_tasks.CACHE_DIR_VARIABLE, raising=False)
  task_modules.import_tasks()
  before = set(seqio.TaskRegistry.names())
  yield
  seqio.set_global_cache_dirs([])
  for name in set(seqio.TaskRegistry.names()) - before:
    seqio.TaskRegistry.remove(name)
  if 'toy_mixture' in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove('toy_mixture')


@pytest.fixture
def copied(folders, tmp_path, monkeypatch):
  """The cache, as that of a task `toy` which SeqIO has not looked up yet."""
  _, cache = folders
  shutil.copytree(cache / TASK, tmp_path / 'toy')
  monkeypatch.setenv(cached_tasks.CACHE_DIR_VARIABLE, str(tmp_path))
  source = seqio.TaskRegistry.get(TASK).source
  preference_tasks.add_text_task('toy', source)
  return tmp_path / 'toy'


def load(name=TASK, use_cached=True, **kwargs):
  config = input_pipeline.DatasetConfig(
    name,
    {'inputs': 16, 'targets': 12},
    use_cached=use_cached,
    **{'skip_bad_rows': True, **kwargs},
  )
  return input_pipeline.load_examples(config, vocabularies.byte_vocabulary())


def add_toy_task(rows=(), name='toy'):
  source = sources.PythonSource(
    'prompts', ['train'], lambda _: rows, sources.DatasetInfo()
  )
  return preference_tasks.add_text_task(name, source)


@pytest.mark.usefixtures('cached')
@pytest.mark.parametrize(
  'options',
  [
    {'split': 'train'},
    {'split': 'validation'},
    {'split': 'train', 'max_examples': 11},
    {'split': 'train', 'part': (1, 2), 'truncate_prompt': 'keep_start'},
  ],
  ids=str,
)
def test_a_cached_task_has_the_same_examples_in_the_same_order(
  folders, monkeypatch, options
):
  expected = load(use_cached=False, **options)
  # From here on the files of the data set are out of reach.
  monkeypatch.delenv(sources.DATA_DIR_VARIABLE)
  found = load(**options)
  assert len(found) == len(expected) > 0
  assert found.origins == expected.origins
  assert found.kind is expected.kind is kinds.POINTWISE
  assert found.num_skipped == expected.num_skipped
  assert found.num_truncated == expected.num_truncated
  for name in ('inputs', 'targets'):
    for attribute in ('values', 'ends'):
      np.testing.assert_array_equal(
        getattr(found.columns[name], attribute),
        getattr(expected.columns[name], attribute),
      )
  np.testing.assert_array_equal(
    found.columns['label'], expected.columns['label']
  )
  ours, theirs = (
    examples.text_batch(examples.train_rows(3))
    for examples in (found, expected)
  )
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    np.testing.assert_array_equal(array, theirs[name])


@pytest.mark.usefixtures('cached')
def test_beam_writes_another_order_which_is_undone():
  task_modules.import_tasks()
  task = seqio.TaskRegistry.get(TASK)
  dataset = task.get_dataset(None, 'train', use_cached=True, shuffle=False)
  written = [r['position'].tolist() for r in dataset.as_numpy_iterator()]
  assert written != sorted(written)
  assert {file for file, _ in written} == {0, 1}
  read = [row['position'].tolist() for row in cached_tasks.read(task, 'train')]
  assert read == sorted(written)


@pytest.mark.usefixtures('cached')
def test_an_unusable_row_of_a_cache_is_an_error_that_names_it():
  with pytest.raises(errors.DataError, match=r'reward_00\.json#9.*neither 0'):
    load(skip_bad_rows=False)


@pytest.mark.usefixtures('cached')
@pytest.mark.parametrize('use_cached', [False, True])
def test_an_empty_split_is_the_same_error_as_without_a_cache(use_cached):
  with pytest.raises(errors.DataError, match=f"'test' of '{TASK}' has no"):
    load(split='test', use_cached=use_cached)


def test_every_built_in_task_can_be_cached_and_names_its_module():
  modules = set(task_modules._BUILT_IN) - {'mixtures'}
  seen = set()
  for name in seqio.TaskRegistry.names():
    task = seqio.TaskRegistry.get(name)
    if prefixes := [m for m in modules if name.startswith(f'{m}_')]:
      module = max(prefixes, key=len)  # demo_vqa's tasks are not demo's.
      assert task.supports_caching
      assert task.source.module == f'tasks.{module}'
      seen.add(module)
  assert seen == modules


def test_a_missing_cache_names_the_folder_and_the_command(
  tmp_path, monkeypatch
):
  command = (
    'seqio_cache_tasks --tasks=demo_sft --output_cache_dir={}'
    ' --module_import=tasks.demo'
  )
  with pytest.raises(errors.DataError) as caught:
    load('demo_sft')
  assert 'PERLHF_CACHE_DIR is not set' in str(caught.value)
  assert command.format('FOLDER') in str(caught.value)
  # A folder without the file COMPLETED is one that Beam has not finished.
  (tmp_path / 'demo_sft').mkdir()
  monkeypatch.setenv(cached_tasks.CACHE_DIR_VARIABLE, str(tmp_path))
  with pytest.raises(errors.DataError) as caught:
    load('demo_sft')
  assert f'no complete cache in {tmp_path}.' in str(caught.value)
  assert command.format(tmp_path) in str(caught.value)


def test_a_task_without_a_place_for_the_cache_is_refused():
  seqio.TaskRegistry.add(
    'toy',
    add_toy_task(name='toy_cacheable').source,
    output_features=preference_tasks.text_features('prompts'),
  )
  with pytest.raises(errors.ConfigError, match=r"'toy' .*CacheDatasetPlace"):
    load('toy')


def test_a_missing_file_of_a_cache_is_an_error(copied):
  next(copied.glob('train.tfrecord-00001-of-*')).unlink()
  with pytest.raises(errors.DataError, match=f'{copied} is incomplete: 2 of 3'):
    load('toy')


def test_a_damaged_file_of_a_cache_is_an_error(copied):
  path = max(copied.glob('train.tfrecord-*'), key=lambda p: p.stat().st_size)
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(errors.DataError, match=f'{copied} is damaged'):
    load('toy')


def test_a_split_that_is_younger_than_the_cache_is_an_error(copied):
  (copied / 'info.validation.json').unlink()
  with pytest.raises(errors.DataError, match="has no split 'validation'"):
    load('toy', split='validation')


def test_mixtures_may_take_their_rates_from_caches(copied):
  preference_tasks.add_text_task(
    'toy_uncached', seqio.TaskRegistry.get('toy').source
  )
  seqio.MixtureRegistry.add(
    'toy_mixture', ['toy'], default_rate=seqio.mixing_rate_num_examples
  )
  examples = load('toy_mixture')
  assert examples.origins == load('toy').origins
  seqio.MixtureRegistry.remove('toy_mixture')
  seqio.MixtureRegistry.add(
    'toy_mixture', ['toy_uncached'], default_rate=seqio.mixing_rate_num_examples
  )
  with pytest.raises(errors.ConfigError, match=r'rate of .toy_uncached'):
    load('toy_mixture')


def test_rows_of_other_sources_come_in_the_order_of_the_cache(copied):
  def without_position(dataset):
    return dataset.map(
      lambda row: {n: v for n, v in row.items() if n != 'position'}
    )

  expected = load('toy').origins
  source = seqio.TaskRegistry.get('toy').source
  seqio.TaskRegistry.remove('toy')
  seqio.TaskRegistry.add(
    'toy',
    source,
    output_features=preference_tasks.text_features('pointwise'),
    preprocessors=[seqio.CacheDatasetPlaceholder(), without_position],
  )
  origins = load('toy').origins
  assert origins != expected
  assert sorted(origins) == sorted(expected)
