"""Which responses are shown as answers to one prompt."""

from etils import epath
import pytest
import report_pages

from perlhf_jax.report import answers
from perlhf_jax.report import run_files

A, B = (f'sample_images/{letter * 16}.png' for letter in 'ab')


def shown(folder, **columns):
  """Returns the responses side by side, per prompt of the first column."""
  found = []
  for name, records in columns.items():
    samples = [
      {'prompt': 'how many?', 'response': response, **fields}
      for response, fields in records
    ]
    report_pages.write(folder / name, eval__json={'samples': samples})
    found.append(run_files.read(epath.Path(folder / name)))
  block = answers.of_evaluations(found)[0]
  return [[each.text for each in sample.answers] for sample in block.samples]


def test_answers_are_about_the_same_images(tmp_path):
  assert shown(
    tmp_path,
    first=[('1', {'images': [A]}), ('2', {'images': [B]})],
    second=[('3', {'images': [B]}), ('4', {'images': [A, B]})],
    third=[('5', {'images': [A]}), ('6', {'images': [A]})],
  ) == [['1', '5'], ['2', '3']]


def test_several_answers_to_one_prompt_stay_in_order(tmp_path):
  answered = [(str(number), {'images': [A]}) for number in range(3)]
  assert shown(tmp_path, first=answered, second=answered) == [
    ['0', '0'],
    ['1', '1'],
    ['2', '2'],
  ]


@pytest.mark.parametrize(
  ('before', 'after'),
  [({}, {}), ({}, {'images': [A]}), ({'images': [A]}, {})],
)
def test_records_without_images_are_told_apart_by_text(tmp_path, before, after):
  assert shown(
    tmp_path, first=[('1', before), ('2', before)], second=[('3', after)]
  ) == [['1', '3'], ['2']]
