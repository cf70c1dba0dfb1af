import json
import logging as python_logging
import math

import pytest

from perlhf_jax.core import errors
from perlhf_jax.stages import line_files


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'lines.jsonl'


def test_rows_are_read_as_they_were_written(path):
  rows = [
    # Characters at which splitlines() would break a line.
    {'prompt': 'a\u2028b\x85c\x0bd\n', 'id': 7},
    {'prompt': '', 'other': [1.5, None]},
    {'prompt': '¿Dónde está el café? ☕'},
  ]
  line_files.write(str(path), rows)
  assert line_files.read(str(path), ('prompt',)) == rows
  assert 'café' in path.read_text(encoding='utf-8')
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('content', [b'', b'\n'])
def test_empty_file(path, content):
  path.write_bytes(content)
  if content:
    with pytest.raises(errors.DataError, match='jsonl:1 is not JSON'):
      line_files.read(str(path), ())
  else:
    assert line_files.read(str(path), ('prompt',)) == []


@pytest.mark.parametrize('ending', ['', '\n', '\r\n'])
def test_line_endings(path, ending):
  line = '{"a": "b"}'
  path.write_bytes(f'{line}\r\n{line}{ending}'.encode())
  assert line_files.read(str(path), ('a',)) == [{'a': 'b'}] * 2


@pytest.mark.parametrize(
  ('bad', 'wanted'),
  [
    (b'{', 'is not JSON'),
    (b'', 'is not JSON'),
    (b'{"prompt": "\xe9"}', 'is not JSON'),
    (b'["prompt"]', 'is not an object with "prompt" and "response"'),
    (b'{"prompt": "a"}', "has no string 'response'"),
    (b'{"prompt": 3, "response": "b"}', "has no string 'prompt'"),
    (b'{"prompt": "\\ud83d", "response": "b"}', 'surrogate'),
    (b'{"prompt": "a", "response": "b", "c": ["\\ud83d"]}', 'surrogate'),
  ],
)
def test_a_bad_line_is_named(path, bad, wanted):
  good = b'{"prompt": "a", "response": "b"}'
  path.write_bytes(b'\n'.join([good, bad, good]) + b'\n')
  with pytest.raises(errors.DataError) as raised:
    line_files.read(str(path), ('prompt', 'response'))
  assert str(raised.value).startswith(f'{path}:2 ')
  assert wanted in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path):
  for path in (tmp_path, tmp_path / 'nowhere.jsonl'):
    with pytest.raises(errors.DataError, match=f'--input={path}'):
      line_files.read(str(path), ())


def test_output_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  for path, wanted in (
    (tmp_path / 'no' / 'out.jsonl', 'does not exist'),
    (tmp_path, 'is a folder'),
    (tmp_path / 'file' / 'out.jsonl', 'Cannot write'),
  ):
    with pytest.raises(errors.ConfigError, match=wanted) as raised:
      line_files.check_output(str(path))
    assert f'--output={path}' in str(raised.value)


def test_checking_the_output_leaves_nothing_behind(path):
  line_files.check_output(str(path))
  assert not list(path.parent.iterdir())
  path.write_text('before')
  line_files.check_output(str(path))
  assert path.read_text() == 'before'


def test_a_fault_leaves_the_old_file(path):
  path.write_text('before')

  def rows():
    yield {'a': 1}
    raise ValueError('a fault')

  with pytest.raises(ValueError, match='a fault'):
    line_files.write(str(path), rows())
  assert path.read_text() == 'before'


def test_non_finite_numbers_of_the_input_pass_through(path):
  path.write_text('{"a": "b", "c": NaN}\n')
  (row,) = line_files.read(str(path), ('a',))
  line_files.write(str(path), [row])
  assert math.isnan(json.loads(path.read_text())['c'])


@pytest.mark.parametrize(('limit', 'cut'), [(None, 0), (9, 0), (8, 1), (2, 3)])
def test_cuts_are_counted(caplog, limit, cut):
  with caplog.at_level(python_logging.WARNING, 'absl'):
    line_files.report_cuts('prompt', [3, 9, 4], limit)
  assert len(caplog.messages) == bool(cut)
  if cut:
    (message,) = caplog.messages
    assert message.startswith(f'{cut} of 3 prompts are longer than {limit} ')
    assert '--prompt_length' in message
