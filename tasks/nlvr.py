"""NLVR: is a statement about a drawing of three boxes true or false?

Source: https://lil.nlp.cornell.edu/nlvr/ (Suhr et al. 2017), files at
https://github.com/lil-lab/nlvr in the folder `nlvr`; CC BY 4.0.

Files, under PERLHF_DATA_DIR directly or in `nlvr/`: for x in train, dev, test,
`x/x.json` (JSON lines, despite the suffix) and
`x/images/DIRECTORY/x-IDENTIFIER-K.png`; or `x.json` and `images/` without the
folder x, or in a folder `nlvr-x/`. A clone of the repository works. Each
statement has six images, K = 0 to 5, which differ in the order of the boxes;
only image 0 is read.

Tasks: nlvr_sft, nlvr_rm (pointwise), nlvr_prompts (with the label as a
reference; `tasks.vqa.soft_accuracy` judges it as right or wrong). The prompt is
the statement, the response `true` or `false`. nlvr_rm judges each statement
twice: the right word has label 1 and the other label 0.

Splits: upstream's train, dev (as validation) and test. Without the test file,
dev is test and 5% of train is validation; with dev alone, it is split into 80%
train, 10% validation and 10% test. These splits use a hash of the first number
of the identifier, which the (up to four) examples that were made together
share.
"""

from collections.abc import Iterator, Mapping
import os
from typing import Any

from perlhf_jax.data import json_rows
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources
from tasks import vqa

HOMEPAGE = 'https://lil.nlp.cornell.edu/nlvr/'
LABELS = ('true', 'false')


def read(path: str) -> Iterator[json_rows.Row]:
  """Yields the rows of a file, with the path of the image added as `image`.

  Raises:
    DataError: the file cannot be read.
  """
  folder, name = os.path.split(path)
  prefix = name.removesuffix('.json')
  for row in json_rows.read_lines(path):
    record = row.record
    if not row.problem and {'directory', 'identifier'} <= record.keys():
      image = f'{prefix}-{record["identifier"]}-0.png'
      place = os.path.join(folder, 'images', str(record['directory']), image)
      row = row._replace(record={**record, 'image': place})
    yield row


def to_prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
  """Returns statement and label of a record.

  Raises:
    ValueError: the label is neither `true` nor `false`.
  """
  if record['label'] not in LABELS:
    raise ValueError(f'the label is {record["label"]!r}, not true or false')
  return record['sentence'].strip(), record['label']


def parse_sft(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the label as a demonstration."""
  _, response = to_prompt_and_response(record)
  return {**_shared(record), 'targets': response}


def parse_judged(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the right label and the wrong one, as two judged responses."""
  _, right = to_prompt_and_response(record)
  wrong = LABELS[right == LABELS[0]]
  return vqa.judge_both(right, wrong, **_shared(record))


def parse_prompt(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the statement, with its label as the reference."""
  _, label = to_prompt_and_response(record)
  return {**_shared(record), 'references': [label]}


def _shared(record: Mapping[str, Any]) -> dict[str, Any]:
  # Read first, so that a message names the file's field, not `image`.
  group = record['identifier'].split('-')[0], record['directory']
  return {
    'inputs': to_prompt_and_response(record)[0],
    'images': [record['image']],
    sources.SPLIT_KEY: group[0],
  }


def _files(part: str) -> tuple[str, ...]:
  clone = f'nlvr/nlvr/{part}'
  places = (clone, f'nlvr/{part}', 'nlvr', f'nlvr-{part}', part, '')
  return tuple(os.path.join(place, f'{part}.json') for place in places)


_TRAIN, _DEV, _TEST = _files('train'), _files('dev'), _files('test')
_LAYOUTS = (
  (
    sources.FileGroup(_TRAIN, {'train': 1.0}),
    sources.FileGroup(_DEV, {'validation': 1.0}),
    sources.FileGroup(_TEST, {'test': 1.0}),
  ),
  (
    sources.FileGroup(_TRAIN, {'train': 0.95, 'validation': 0.05}),
    sources.FileGroup(_DEV, {'test': 1.0}),
  ),
  (sources.FileGroup(_DEV, {'train': 0.8, 'validation': 0.1, 'test': 0.1}),),
)

for _name, _kind, _parse in (
  ('sft', 'sft', parse_sft),
  ('rm', 'pointwise', parse_judged),
  ('prompts', 'prompts', parse_prompt),
):
  preference_tasks.add_preference_task(
    f'nlvr_{_name}',
    _kind,
    _parse,
    _LAYOUTS,
    info=sources.DatasetInfo(
      description='NLVR',
      homepage=HOMEPAGE,
      licence='CC BY 4.0',
      files=(
        '[nlvr/]{train,dev,test}/{train,dev,test}.json and images/, or of dev'
        ' alone'
      ),
    ),
    read=read,
    images=True,
    references=_kind == 'prompts',
  )
