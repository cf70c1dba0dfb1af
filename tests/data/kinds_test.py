import pathlib
import re

import numpy as np
import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import feature_converters
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import row_checks
from perlhf_jax.data import sources
from perlhf_jax.data import vocabularies

_ROWS = {
  'sft': {'inputs': 'prompt', 'targets': 'response'},
  'pairwise': {'inputs': 'prompt', 'chosen': 'good', 'rejected': 'worse'},
  'pointwise': {'inputs': 'prompt', 'targets': 'response', 'label': 1},
  'prompts': {'inputs': 'prompt'},
}


@pytest.mark.parametrize(
  ('names', 'kind'),
  [
    (['inputs', 'targets'], 'sft'),
    (['inputs', 'chosen', 'rejected'], 'pairwise'),
    (['inputs', 'chosen', 'rejected', 'margin'], 'pairwise'),
    (['label', 'targets', 'inputs'], 'pointwise'),
    (['inputs'], 'prompts'),
    (['targets'], None),
    (['inputs', 'chosen'], None),
    (['inputs', 'targets', 'weight'], None),
    (['inputs', 'targets', 'images'], 'sft'),
    (['inputs', 'images', 'references'], 'prompts'),
    (['inputs', 'targets', 'references'], None),
  ],
)
def test_kind_is_recognised_by_features(names, kind):
  assert kinds.of_features(names) is (kind and kinds.KINDS[kind])


def test_the_page_on_own_data_lists_the_features_of_each_kind():
  root = pathlib.Path(__file__).resolve().parents[2]
  page = (root / 'docs' / 'own_data.md').read_text('utf-8')
  for kind in kinds.KINDS.values():
    (row,) = re.findall(rf'^\| `{kind.name}` \| .*$', page, re.MULTILINE)
    features = *kind.required, *kind.optional
    assert [n for n in features if f'`{n}`' not in row] == []
    assert (f'`{kinds.REFERENCES}`' in row) == (kinds.REFERENCES in kind.lists)


def test_unknown_kinds_and_lists_are_named():
  with pytest.raises(errors.ConfigError, match=r"My task .*'pair'.*pairwise"):
    kinds.named('pair', 'My task')
  with pytest.raises(errors.ConfigError, match=r"'pair'.*pairwise"):
    sources.PythonSource('pair', ['train'], lambda _: [], sources.DatasetInfo())
  assert kinds.PROMPTS.declare(images=True, references=True) == kinds.LISTS
  assert kinds.SFT.declare(images=False, references=False) == ()
  with pytest.raises(errors.ConfigError, match="'sft' takes no references"):
    kinds.SFT.declare(images=False, references=True)


@pytest.fixture(params=_ROWS)
def task(request):
  """A task of each kind, whose rows our source makes."""
  row = _ROWS[request.param]
  source = sources.PythonSource(
    request.param,
    ['train'],
    lambda _: [row] * 5,
    sources.DatasetInfo(),
  )
  yield preference_tasks.add_text_task('toy_kind', source)
  for name in {'toy_kind', 'toy_foreign'} & set(seqio.TaskRegistry.names()):
    seqio.TaskRegistry.remove(name)


def _load(name):
  return input_pipeline.load_examples(
    input_pipeline.DatasetConfig(
      name, {'inputs': 4, 'targets': 4}, batch_size=5, shuffle=False
    ),
    vocabularies.byte_vocabulary(),
  )


@pytest.mark.parametrize('is_foreign', [False, True])
def test_rows_are_checked_once_and_cut_once(task, is_foreign, monkeypatch):
  name = 'toy_kind'
  if is_foreign:
    # A source that is not ours, without `origin` and `problem`.
    name = 'toy_foreign'
    rows = task.source.get_dataset('train')
    wanted = set(task.output_features)
    rows = rows.map(lambda row: {n: row[n] for n in row if n in wanted})
    seqio.TaskRegistry.add(
      name,
      seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: rows, splits=['train']
      ),
      output_features=task.output_features,
      preprocessors=[],
    )
  checked, cut = [], []
  find_problem = row_checks.find_problem
  cut_one = feature_converters.Converter.cut
  monkeypatch.setattr(
    row_checks,
    'find_problem',
    lambda *args: checked.append(args) or find_problem(*args),
  )
  monkeypatch.setattr(
    feature_converters.Converter,
    'cut',
    lambda *args: cut.append(args) or cut_one(*args),
  )
  examples = _load(name)
  assert examples.kind is kinds.KINDS[task.source.kind.name]
  batch = next(input_pipeline.train_iterator(examples))
  for each in input_pipeline.eval_batches(examples):
    np.testing.assert_array_equal(each['example_mask'], batch['example_mask'])
  assert (len(checked), len(cut)) == (5, 5)
