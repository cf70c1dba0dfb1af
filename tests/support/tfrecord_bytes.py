"""Records of TFRecord files, whole ones and others, with good checksums."""

import struct

import google_crc32c


def _checksum(content):
  crc = google_crc32c.value(content)
  masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
  return struct.pack('<I', masked)


def record(content, length=None):
  """A record; `length` is what it says that it has."""
  size = struct.pack('<Q', len(content) if length is None else length)
  return size + _checksum(size) + content + _checksum(content)
