"""Reads lines of untrusted files, with bounded length and unpacked size.

Six megabytes of gzip can unpack to four gigabytes, in one line or in many.
"""

from collections.abc import Iterator
import gzip
from typing import Any

import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files

MAX_LINE_BYTES = 64 * 1024**2
# gzip shrinks JSON of text to a third, and of templates to a twentieth.
MAX_EXPANSION = 64
# Every file may expand to this size.
MIN_UNPACKED_BYTES = 64 * 1024**2
_CHUNK = 1024**2


def read(path: str, *, is_gzip: bool) -> Iterator[bytes]:
  """Yields the lines of a file, without their line ends.

  Args:
    path: local or `gs://`.
    is_gzip: whether the file is compressed with gzip.

  Raises:
    DataError: the file is a pipe or a device, a line is too long, or the file
      expands to many times its size.
    OSError: the file cannot be read, or is not gzip.
    EOFError: the file is truncated.
    tf.errors.OpError: the file cannot be read.
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
          'record is. Check that the file has one object per line.'
        )
    if length:
      yield b''.join(parts)


def unpacked(raw: Any) -> gzip.GzipFile:
  """Returns a file object that reads the content of a gzip file."""
  return gzip.GzipFile(fileobj=raw)


def chunks_of(file: Any) -> Iterator[bytes]:
  """Yields a file in chunks of one megabyte."""
  while chunk := file.read(_CHUNK):
    yield chunk


def bounded(
  chunks: Iterator[bytes], path: str, packed_bytes: int
) -> Iterator[bytes]:
  """Yields unpacked chunks up to a limit of their total size.

  Args:
    chunks: unpacked chunks of a file.
    path: path of the file, for the message.
    packed_bytes: size of the file.

  Raises:
    DataError: the chunks hold more than `MAX_EXPANSION` times `packed_bytes`,
      and more than `MIN_UNPACKED_BYTES`.
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
