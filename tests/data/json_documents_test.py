import pytest

from perlhf_jax.core import errors
from perlhf_jax.data import json_documents


def test_loads_a_document_of_the_wanted_kind(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('{"a": [1, "ü"]}', 'utf-8')
  assert json_documents.load(str(path), dict) == {'a': [1, 'ü']}


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"a": ', 'not valid JSON'),
    (b'"\xff"', 'not valid JSON'),
    (b'[1]', 'holds a JSON list, not a dict'),
    (None, 'cannot be read'),
  ],
)
def test_anything_else_is_named(tmp_path, content, message):
  path = tmp_path / 'a.json'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.DataError, match=message) as caught:
    json_documents.load(str(path), dict)
  assert str(path) in str(caught.value)
