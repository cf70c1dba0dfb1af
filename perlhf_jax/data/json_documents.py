"""Reads JSON files that are one document and no list of records."""

import json
from typing import Any

import tensorflow as tf

from perlhf_jax.core import errors


def load(path: str, kind: type) -> Any:
  """The content of a JSON file.

  Args:
    path: local or `gs://`.
    kind: what it must be: dict or list.

  Raises:
    DataError: the file cannot be read, is not JSON, or holds something else.
  """
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      text = file.read()
  except (OSError, tf.errors.OpError) as error:
    raise errors.DataError(
      f'{path} cannot be read: {error}. Check that it is there and that you'
      ' may read it.'
    ) from error
  try:
    document = json.loads(text.decode('utf-8'))
  except ValueError as error:
    raise errors.DataError(
      f'{path} is not valid JSON: {error}. Check that the file is complete.'
    ) from error
  if not isinstance(document, kind):
    raise errors.DataError(
      f'{path} holds a JSON {type(document).__name__}, not a'
      f' {kind.__name__}. Check that it is the file that it seems to be.'
    )
  return document
