"""Reads JSON files that are one document, not a list of records."""

from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.data import whole_files


def load(path: str, kind: type) -> Any:
  """Returns the content of a JSON file.

  Args:
    path: local or `gs://`.
    kind: required type of the content: dict or list.

  Raises:
    DataError: the file cannot be read, is not JSON, or holds something else.
  """
  text = whole_files.read(path)
  try:
    document = strict_json.loads(text, allow_nan=True)
  except ValueError as error:
    raise errors.DataError(
      f'{path} is not valid JSON: {error}. Check that the file is complete.'
    ) from error
  if not isinstance(document, kind):
    raise errors.DataError(
      f'{path} holds a JSON {type(document).__name__}, not a {kind.__name__}.'
      ' Check that it is the right file.'
    )
  return document
