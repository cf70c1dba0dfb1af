"""Reads TFRecord files of `tf.train.Example`, and records each row's origin.

`read` is for `preference_tasks.add_preference_task(..., read=...)`.

A record is its length (8 bytes), a checksum of the length, its content, and a
checksum of the content. TensorFlow allocates any length that a record declares,
which can end the process; here the file must be that long.
"""

from collections.abc import Iterator
import gzip
import struct
from typing import Any
import zlib

from google.protobuf import message
import google_crc32c
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.data import bounded_lines
from perlhf_jax.data import json_rows

# Maximum size of a record; episodes with screenshots have about ten million
# bytes.
MAX_RECORD_BYTES = 1024**3
# Start of a gzip file: the magic number and the only compression method.
_GZIP = b'\x1f\x8b\x08'
_LENGTH = struct.Struct('<Q')
_CHECKSUM = struct.Struct('<I')
_HEADER = _LENGTH.size + _CHECKSUM.size
_MASK = 0xA282EAD8


class _DamagedError(Exception):
  """A record is damaged, so that the records after it cannot be found."""


def read(path: str) -> Iterator[json_rows.Row]:
  """Yields the rows of a TFRecord file, plain or compressed with gzip.

  The features of a record become lists of bytes, ints or floats, by name. A
  record that is not a `tf.train.Example` becomes a row with a problem. So does
  a damaged or truncated record, which is the last row, because the records
  after it cannot be found.

  Args:
    path: local or `gs://`; the suffix does not decide about compression.

  Raises:
    DataError: the file cannot be read, or unpacks to many times its size.
  """
  index = 0
  try:
    for record in records(path):
      yield _row(f'{path}#{index}', record)
      index += 1
  except _DamagedError as error:
    yield json_rows.Row(
      f'{path}#{index}',
      {},
      f'the record is damaged ({error}); it and the records after it are lost,'
      ' so get the file again',
    )


def check_lengths(path: str) -> None:
  """Makes sure that a file is as long as its records declare, for TensorFlow.

  Contents are skipped: TensorFlow checks their checksums.

  Args:
    path: path of a file that is not compressed.

  Raises:
    DataError: a record is longer than its file allows, or the file cannot be
      read.
  """
  plain_files.check(path, errors.DataError)
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      at, index, size = 0, 0, file.size()
      while at < size:
        file.seek(at)
        length = _length(file.read(_HEADER), at, size)
        at += _HEADER + length + _CHECKSUM.size
        index += 1
  except _DamagedError as error:
    raise errors.DataError(
      f'{path}#{index} is damaged ({error}). Get the file again.'
    ) from error
  except (OSError, tf.errors.OpError) as error:
    raise _unreadable(path, error) from error


def records(path: str) -> Iterator[bytes]:
  """Yields the serialised records of a file."""
  plain_files.check(path, errors.DataError)
  try:
    with tf.io.gfile.GFile(path, 'rb') as raw:
      is_gzip = raw.read(len(_GZIP)) == _GZIP
      raw.seek(0)
      if is_gzip:
        unpacked = bounded_lines.chunks_of(bounded_lines.unpacked(raw))
        chunks = bounded_lines.bounded(unpacked, path, raw.size())
        left = None
      else:
        chunks, left = bounded_lines.chunks_of(raw), raw.size()
      yield from _split(_Bytes(chunks), left)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise _DamagedError(str(error)) from error
  except (OSError, tf.errors.OpError) as error:
    raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> errors.DataError:
  return errors.DataError(
    f'{path} cannot be read: {error}. Check that the file is complete and that'
    ' you may read it.'
  )


class _Bytes:
  """A reader that takes parts of any length from a stream of chunks."""

  def __init__(self, chunks: Iterator[bytes]):
    self._chunks, self._held, self._at = chunks, b'', 0

  def take(self, count: int) -> bytes:
    """Returns the next bytes; fewer at the end."""
    part = self._held[self._at : self._at + count]
    self._at += len(part)
    if len(part) == count:
      return part
    parts, missing = [part], count - len(part)
    while missing and (chunk := next(self._chunks, b'')):
      part = chunk[:missing]
      parts.append(part)
      self._held, self._at = chunk, len(part)
      missing -= len(part)
    return b''.join(parts)


def _split(content: _Bytes, size: int | None) -> Iterator[bytes]:
  """Yields records.

  Args:
    content: content of the file.
    size: size of the file; None if unknown before reading.
  """
  at = 0
  while header := content.take(_HEADER):
    length = _length(header, at, size)
    at += _HEADER + length + _CHECKSUM.size
    record = content.take(length)
    checksum = content.take(_CHECKSUM.size)
    if len(checksum) < _CHECKSUM.size:
      raise _DamagedError('the file ends in it')
    _verify(record, checksum, 'its content')
    yield record


def _length(header: bytes, at: int, size: int | None) -> int:
  """Returns the length of a record.

  Args:
    header: length of the record, and the checksum of the length.
    at: offset of the record in the file.
    size: size of the file; None if unknown before reading.

  Raises:
    _DamagedError: the header is damaged, or the file is too short.
  """
  if len(header) < _HEADER:
    raise _DamagedError('the file ends in the length of a record')
  (length,) = _LENGTH.unpack_from(header)
  _verify(header[: _LENGTH.size], header[_LENGTH.size :], 'its length')
  if length > MAX_RECORD_BYTES:
    raise _DamagedError(
      f'its length is {length:,} bytes; at most {MAX_RECORD_BYTES:,} are'
      ' allowed'
    )
  if size is not None and at + _HEADER + length + _CHECKSUM.size > size:
    raise _DamagedError(
      f'its length is {length:,} bytes, but the file ends before that'
    )
  return length


def _verify(content: bytes, checksum: bytes, what: str) -> None:
  crc = google_crc32c.value(content)
  masked = (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF
  if masked != _CHECKSUM.unpack(checksum)[0]:
    raise _DamagedError(f'{what} does not match its checksum')


def _row(origin: str, record: bytes) -> json_rows.Row:
  try:
    example = tf.train.Example.FromString(record)
  except message.DecodeError as error:
    return json_rows.Row(
      origin, {}, f'the record is not a tf.train.Example ({error})'
    )
  features = example.features.feature
  return json_rows.Row(
    origin, {name: _values(features[name]) for name in features}
  )


def _values(feature: tf.train.Feature) -> list[Any]:
  kind = feature.WhichOneof('kind')
  return list(getattr(feature, kind).value) if kind else []
