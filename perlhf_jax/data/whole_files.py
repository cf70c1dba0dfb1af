"""Reads a file in one piece."""

import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files

# Several times the size of VQAv2's annotations.
MAX_BYTES = 2 * 1024**3


def read(path: str) -> bytes:
  """Returns the content of a file.

  Args:
    path: local or `gs://`.

  Raises:
    DataError: the file cannot be read, is a pipe or a device, or is larger than
      `MAX_BYTES`.
  """
  plain_files.check(path, errors.DataError)
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      size = file.size()
      if size <= MAX_BYTES:
        return file.read()
  except (OSError, tf.errors.OpError) as error:
    raise errors.DataError(
      f'{path} cannot be read: {error}. Check that the file is complete and'
      ' that you may read it.'
    ) from error
  raise errors.DataError(
    f'{path} has {size:,} bytes; files that are read in one piece have at most'
    f' {MAX_BYTES:,}. Write one object per line into a .jsonl.'
  )
