"""Reads a file in one piece."""

import tensorflow as tf

from perlhf_jax.core import errors


def read(path: str) -> bytes:
  """The content of a file.

  Args:
    path: local or `gs://`.

  Raises:
    DataError: the file cannot be read.
  """
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      return file.read()
  except (OSError, tf.errors.OpError) as error:
    raise errors.DataError(
      f'{path} cannot be read: {error}. Check that the file is complete and'
      ' that you may read it.'
    ) from error
