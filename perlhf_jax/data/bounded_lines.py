"""Lines of files that may be hostile: of bounded length, and unpacked size.

Six megabytes of gzip can hold four gigabytes, in one line or in many.
"""

from collections.abc import Iterator
import gzip
from typing import Any

import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files

MAX_LINE_BYTES = 64 * 1024**2
# JSON of text shrinks to a third, and of templates to a twentieth.
MAX_EXPANSION = 64
# What any file may expand to.
MIN_UNPACKED_BYTES = 64 * 1024**2
_CHUNK = 1024**2


def read(path: str, *, is_gzip: bool) -> Iterator[bytes]:
  """Yields the lines of a file, without their ends.

  Args:
    path: local or `gs://`.
    is_gzip: whether it is compressed.

  Raises:
    DataError: it is a pipe or a device, a line is too long, or the file expands
      to many times its size.
    OSError: it cannot be read, or is no gzip.
    EOFError: it is cut off.
    tf.errors.OpError: it cannot be read.
  """
  plain_files.check(path, errors.DataError)
  with tf.io.gfile.GFile(path, 'rb') as raw:
    chunks = chunks_of(unpacked(raw) if is_gzip else raw)
    if is_gzip:
      chunks = bounded(chunks, path, raw.size())
    number, parts, length = 1, [], 0
    for chunk in chunks:
      first, *others = chunk.split(b'\n')
      for part in [first, *others[:-1]] if others else []:
        yield b''.join([*parts, part])
        number, parts, length = number + 1, [], 0
      rest = others[-1] if others else first
      parts.append(rest)
      length += len(rest)
      if length > MAX_LINE_BYTES:
        raise errors.DataError(
          f'{path}:{number} is longer than {MAX_LINE_BYTES:,} bytes, which no '
          'record is. Check that the file has one object a line.'
        )
    if length:
      yield b''.join(parts)


def unpacked(raw: Any) -> gzip.GzipFile:
  """Returns what a gzip file holds, to be read."""
  return gzip.GzipFile(fileobj=raw)


def chunks_of(file: Any) -> Iterator[bytes]:
  """Yields a file in parts of one megabyte."""
  while chunk := file.read(_CHUNK):
    yield chunk


def bounded(
  chunks: Iterator[bytes], path: str, packed_bytes: int
) -> Iterator[bytes]:
  """Yields what is unpacked, as long as it is not too much.

  Args:
    chunks: unpacked.
    path: of the file, for the message.
    packed_bytes: its size.

  Raises:
    DataError: it is more than `MAX_EXPANSION` times `packed_bytes`.
  """
  most = max(MIN_UNPACKED_BYTES, MAX_EXPANSION * packed_bytes)
  total = 0
  for chunk in chunks:
    total += len(chunk)
    if total > most:
      raise errors.DataError(
        f'{path} has {packed_bytes:,} bytes and unpacks to more than {most:,}, '
        f'{MAX_EXPANSION} times as many at most. If it is what it should be, '
        'unpack it first (gunzip).'
      )
    yield chunk
