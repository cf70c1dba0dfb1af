import logging as python_logging
import math
import os
import resource

import pytest

from perlhf_jax.core import errors
from perlhf_jax.core import outside
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


@pytest.mark.parametrize(
  ('content', 'wanted'),
  [
    (b'', r'jsonl is empty; write .* {"prompt": "…"}\.'),
    (b'\xef\xbb\xbf', 'jsonl is empty'),
    (b'\n', 'jsonl:1 is not JSON'),
  ],
)
def test_empty_file(path, content, wanted):
  path.write_bytes(content)
  with pytest.raises(errors.DataError, match=wanted):
    line_files.read(str(path), ('prompt',))


def test_the_mark_with_which_windows_begins_a_file_is_left_out(path):
  path.write_bytes(b'\xef\xbb\xbf{"a": "b"}\n')
  assert line_files.read(str(path), ('a',)) == [{'a': 'b'}]


def test_a_field_may_be_a_list_where_that_is_allowed(path):
  rows = [{'a': 'b', 'c': ['d', '']}, {'a': 'b', 'c': 'd'}]
  line_files.write(str(path), rows)
  assert line_files.read(str(path), ('a', 'c'), several=('c',)) == rows
  with pytest.raises(errors.DataError, match=r"jsonl:1 has no string 'c' \(it"):
    line_files.read(str(path), ('a', 'c'))


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
    (b'["prompt"]', 'is not a JSON object; each line must be'),
    (b'{"prompt": "a"}', "has no string 'response'"),
    (b'{"prompt": 3, "response": "b"}', "has no string 'prompt'"),
    (b'{"prompt": null, "response": "b"}', "no string 'prompt' (it is None)"),
    (b'{"prompt": "a", "response": ["b", 3]}', 'response[1] is 3, not a'),
    (b'{"prompt": "a", "response": []}', "the list 'response' is empty"),
    (b'{"prompt": ["a"], "response": "b"}', "has no string 'prompt'"),
    (b'{"prompt": "a", "response": ["\\ud83d"]}', 'surrogate'),
    (b'{"prompt": "a", "response": "b", "c": NaN}', 'NaN is not JSON; write'),
    (b'{"prompt": "a", "response": "b", "c": -Infinity}', 'is not JSON'),
    (b'{"prompt": "\\ud83d", "response": "b"}', 'surrogate'),
    (b'{"prompt": "a", "response": "b", "c": ["\\ud83d"]}', 'surrogate'),
  ],
)
def test_a_bad_line_is_named(path, bad, wanted):
  good = b'{"prompt": "a", "response": "b"}'
  path.write_bytes(b'\n'.join([good, bad, good]) + b'\n')
  with pytest.raises(errors.DataError) as raised:
    line_files.read(str(path), ('prompt', 'response'), several=('response',))
  assert str(raised.value).startswith(f'{path}:2')
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
  assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_is_full_is_named(path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(OSError) as error:
      line_files.write(str(path), [{'prompt': 'a' * 5000}])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  message = str(outside.as_user_error(error.value))
  assert str(path) in message and 'size limit' in message
  assert not list(path.parent.iterdir())


def test_another_process_that_writes_the_same_file_is_in_nobodys_way(
  path, monkeypatch
):
  def rows():
    yield {'a': 1}
    with monkeypatch.context() as other:
      other.setattr(os, 'getpid', lambda: 7)
      line_files.check_output(str(path))
      line_files.write(str(path), [{'a': 2}] * 1000)
    yield {'a': 3}

  line_files.write(str(path), rows())
  assert path.read_text() == '{"a": 1}\n{"a": 3}\n'
  assert list(path.parent.iterdir()) == [path]


def test_what_is_not_json_is_not_written(path):
  path.write_text('before')
  with pytest.raises(ValueError, match='not JSON compliant'):
    line_files.write(str(path), [{'a': 1.0}, {'a': math.nan}])
  assert path.read_text() == 'before'


@pytest.mark.parametrize(('limit', 'cut'), [(None, 0), (9, 0), (8, 1), (2, 3)])
def test_cuts_are_counted(caplog, limit, cut):
  with caplog.at_level(python_logging.WARNING, 'absl'):
    line_files.report_cuts('prompt', [3, 9, 4], limit, '--prompt_length')
  assert len(caplog.messages) == bool(cut)
  if cut:
    (message,) = caplog.messages
    assert message.startswith(f'{cut} of 3 prompts are longer than {limit} ')
    assert '--prompt_length' in message
