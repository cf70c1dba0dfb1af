"""Every built-in task, on a few records in the format of its data set.

`fixtures/<data set>/` is a data directory; `fixtures/<data set>.json` says
what must come out of it:
  tasks: of each task and split, the `count` of examples and the `first` one,
    with all its features; of `images`, their number;
  malformed: files, each with a bad record, and what the message must say;
  absent: tasks whose files are not in the fixture, which must say so.
"""

import json
import pathlib
import shutil

import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.data import sources
from perlhf_jax.data import task_modules
from perlhf_jax.data import vocabularies

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
EXPECTED = {
  path.stem: json.loads(path.read_text('utf-8'))
  for path in sorted(FIXTURES.glob('*.json'))
}
SPLITS = [
  (name, task, split)
  for name, expected in EXPECTED.items()
  for task, splits in expected['tasks'].items()
  for split in splits
]
MALFORMED = [
  (name, index)
  for name, expected in EXPECTED.items()
  for index in range(len(expected['malformed']))
]
ABSENT = [
  (name, task)
  for name, expected in EXPECTED.items()
  for task in expected.get('absent', [])
]


def load(task, split):
  task_modules.import_tasks()
  lengths, size = {'inputs': 8192, 'targets': 8192}, None
  if kinds.IMAGES in task_modules.find(task).output_features:
    lengths[kinds.IMAGES], size = 8, 16
  return input_pipeline.load_examples(
    input_pipeline.DatasetConfig(task, lengths, split=split),
    vocabularies.byte_vocabulary(),
    image_size=size,
  )


@pytest.mark.parametrize(('name', 'task', 'split'), SPLITS)
def test_fixture_gives_the_expected_examples(name, task, split, monkeypatch):
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(FIXTURES / name))
  expected = EXPECTED[name]['tasks'][task][split]
  examples = load(task, split)
  assert len(examples) == expected['count']
  declared = set(task_modules.find(task).output_features)
  # A feature that is not in the JSON file would go unchecked.
  assert set(expected['first']) == declared
  declared -= {*kinds.LISTS}
  assert kinds.of_features(declared) is examples.kind
  texts = examples.texts(0)
  for feature, value in expected['first'].items():
    if feature == kinds.IMAGES:
      assert len(examples.images_of(0)) == value
    elif feature == kinds.REFERENCES:
      assert list(examples.references_of(0)) == value
    else:
      assert texts[feature] == value


@pytest.mark.parametrize(('name', 'index'), MALFORMED)
def test_malformed_record_is_named(name, index, tmp_path, monkeypatch):
  case = EXPECTED[name]['malformed'][index]
  data_dir = tmp_path / name
  shutil.copytree(FIXTURES / name, data_dir)
  path = data_dir / case['file']
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(case['content'], 'utf-8')
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(data_dir))
  with pytest.raises(errors.DataError) as caught:
    load(case['task'], case['split'])
  message = str(caught.value)
  assert case['origin'] in message
  assert case['problem'] in message


@pytest.mark.parametrize(('name', 'task'), ABSENT)
def test_task_without_files_says_so(name, task, monkeypatch):
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(FIXTURES / name))
  with pytest.raises(errors.DataError, match='No data under'):
    load(task, 'train')


def test_every_built_in_task_has_a_fixture():
  task_modules.import_tasks()
  built_in = {
    summary.name: summary
    for summary in task_modules.summaries()
    if summary.parts is None  # Mixtures have no files of their own.
    and _module(summary.name).startswith('tasks.')
    and not _module(summary.name).startswith('tasks.demo')
  }
  covered = {task for _, task, _ in SPLITS} | {task for _, task in ABSENT}
  assert set(built_in) == covered
  for task, summary in built_in.items():
    tested = {split for _, other, split in SPLITS if other == task}
    assert not tested or tested == set(summary.splits), task
    assert summary.info.homepage and summary.info.licence, task


def _module(task):
  """Where a task was registered; other tests register some of their own."""
  return getattr(seqio.TaskRegistry.get(task).source, 'module', None) or ''
