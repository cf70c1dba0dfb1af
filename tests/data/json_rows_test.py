import gzip
import json

import pytest

from perlhf_jax.core import errors
from perlhf_jax.data import json_rows

RECORDS = [{'a': 'é'}, {'a': 2}]


def write(path, text):
  if path.name.endswith('.gz'):
    path.write_bytes(gzip.compress(text.encode()))
  else:
    path.write_text(text, encoding='utf-8')
  return str(path)


@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.jsonl.gz'])
def test_lines_keep_their_numbers(tmp_path, name):
  text = json.dumps(RECORDS[0]) + '\n\n' + json.dumps(RECORDS[1])
  path = write(tmp_path / name, text)
  rows = list(json_rows.read(path))
  assert [row.record for row in rows] == RECORDS
  assert [row.origin for row in rows] == [f'{path}:1', f'{path}:3']
  assert [row.problem for row in rows] == ['', '']


def test_arrays_keep_their_index(tmp_path):
  path = write(tmp_path / 'rows.json', json.dumps(RECORDS))
  rows = list(json_rows.read(path))
  assert [row.record for row in rows] == RECORDS
  assert [row.origin for row in rows] == [f'{path}#0', f'{path}#1']


@pytest.mark.parametrize(
  ('line', 'problem'),
  [('{"a": ', 'not valid JSON'), ('[1]', 'JSON list'), ('"x"', 'JSON str')],
)
def test_a_bad_line_is_a_row_with_a_problem(tmp_path, line, problem):
  path = write(tmp_path / 'rows.jsonl', '{"a": 1}\n' + line + '\n{"a": 2}\n')
  rows = list(json_rows.read(path))
  assert len(rows) == 3
  assert problem in rows[1].problem
  assert rows[1].origin == f'{path}:2'
  assert not rows[2].problem


def test_bytes_that_are_no_text_are_a_problem(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(b'{"a": "\xff"}\n')
  (row,) = json_rows.read(str(path))
  assert 'not UTF-8' in row.problem


def test_a_row_of_an_array_that_is_no_object_is_a_problem(tmp_path):
  path = write(tmp_path / 'rows.json', '[{"a": 1}, 7]')
  assert 'JSON int' in list(json_rows.read(path))[1].problem


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('rows.json', '[{"a": 1}', 'not valid JSON'),
    ('rows.json', '{"a": 1}', 'not an array of objects'),
    ('rows.csv', 'a', 'unknown format'),
    ('rows.jsonl', '[\n{"a": 1}\n]', 'one JSON array.*ends with .json'),
  ],
)
def test_unusable_files_are_named(tmp_path, name, text, message):
  path = write(tmp_path / name, text)
  with pytest.raises(errors.DataError, match=message) as caught:
    list(json_rows.read(path))
  assert path in str(caught.value)


def test_a_cut_off_archive_is_an_error(tmp_path):
  path = tmp_path / 'rows.jsonl.gz'
  lines = '\n'.join(json.dumps({'a': i}) for i in range(500))
  path.write_bytes(gzip.compress(lines.encode())[:-200])
  with pytest.raises(errors.DataError, match='cannot be read'):
    list(json_rows.read(str(path)))


def test_a_missing_file_is_an_error(tmp_path):
  with pytest.raises(errors.DataError, match='nowhere'):
    list(json_rows.read(str(tmp_path / 'nowhere.jsonl')))


@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.jsonl.gz', 'rows.json'])
def test_the_mark_with_which_windows_begins_a_file_is_left_out(tmp_path, name):
  text = json.dumps(RECORDS[:1] if name.endswith('.json') else RECORDS[0])
  path = write(tmp_path / name, '\ufeff' + text)
  (row,) = json_rows.read(path)
  assert row.record == RECORDS[0] and not row.problem


@pytest.mark.parametrize(
  ('content', 'wanted'),
  [
    (gzip.compress(b'{"a": 1}', mtime=0), 'is compressed.*ends with .jsonl.gz'),
    ('{"a": 1}'.encode('utf-16'), 'is UTF-16; save it as UTF-8'),
  ],
)
def test_another_format_by_this_name_is_an_error(tmp_path, content, wanted):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(content)
  with pytest.raises(errors.DataError, match=wanted):
    list(json_rows.read(str(path)))
