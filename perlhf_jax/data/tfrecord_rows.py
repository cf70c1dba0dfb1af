"""Reads TFRecord files of `tf.train.Example`, and remembers where rows stood.

`read` is for `preference_tasks.add_preference_task(..., read=...)`.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf import message
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import json_rows

# How a gzip file begins: its magic number and its one method of compression.
_GZIP = b'\x1f\x8b\x08'


def read(path: str) -> Iterator[json_rows.Row]:
  """Yields the rows of a TFRecord file, plain or compressed with gzip.

  The features of a record become lists of bytes, ints or floats, by name. A
  record that is no `tf.train.Example` is a row with a problem. So is one that
  is damaged or cut off, and it is the last: what follows it cannot be found any
  more. A file cut off in the 12 bytes before a record looks complete.

  Args:
    path: local or `gs://`; its name says nothing about compression.

  Raises:
    DataError: the file cannot be read.
  """
  records = iter(_records(path))
  index = 0
  while True:
    origin = f'{path}#{index}'
    try:
      record = next(records, None)
    except tf.errors.DataLossError as error:
      # Only the first line is about the record.
      reason = str(error.message).splitlines()[0]
      yield json_rows.Row(
        origin,
        {},
        f'the record is damaged ({reason}); it and what follows in the file'
        ' are lost, so get the file again',
      )
      return
    except (OSError, tf.errors.OpError) as error:
      raise _unreadable(path, error) from error
    if record is None:
      return
    yield _row(origin, record)
    index += 1


def _records(path: str) -> Iterator[bytes]:
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      is_gzip = file.read(len(_GZIP)) == _GZIP
  except (OSError, tf.errors.OpError) as error:
    raise _unreadable(path, error) from error
  dataset = tf.data.TFRecordDataset(path, 'GZIP' if is_gzip else '')
  return dataset.as_numpy_iterator()


def _unreadable(path: str, error: Exception) -> errors.DataError:
  return errors.DataError(
    f'{path} cannot be read: {error}. Check that the file is complete and that'
    ' you may read it.'
  )


def _row(origin: str, record: bytes) -> json_rows.Row:
  try:
    example = tf.train.Example.FromString(record)
  except message.DecodeError as error:
    return json_rows.Row(
      origin, {}, f'the record is no tf.train.Example ({error})'
    )
  features = example.features.feature
  return json_rows.Row(
    origin, {name: _values(features[name]) for name in features}
  )


def _values(feature: tf.train.Feature) -> list[Any]:
  kind = feature.WhichOneof('kind')
  return list(getattr(feature, kind).value) if kind else []
