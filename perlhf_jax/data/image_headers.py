"""Reads the size of an image from its header, before it is decoded.

A PNG of a few kilobytes can hold billions of pixels.
"""

import struct

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8\xff'
SIGNATURES = (_PNG, _JPEG)

# Each image that is being decoded takes three bytes per pixel.
MAX_PIXELS = 100_000_000

# JPEG markers of frames, which hold the size, and markers without a length.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset([0x01, *range(0xD0, 0xDA)])


def find_problem(content: bytes) -> str | None:
  """Says why an image must not be decoded; None if decoding it is safe.

  Args:
    content: content of the file.

  Returns:
    The problem, as a predicate without its subject.
  """
  size = size_of(content)
  if size is None:
    return 'cannot be decoded; it must be a whole PNG or JPEG'
  width, height = size
  if width * height > MAX_PIXELS:
    return f'has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read'
  return None


def size_of(content: bytes) -> tuple[int, int] | None:
  """Returns the width and height of an image.

  Args:
    content: content of the file.

  Returns:
    Pixels; None if the file is not a PNG or JPEG, or too damaged to tell.
  """
  try:
    if content.startswith(_PNG):
      return struct.unpack_from('>II', content, len(_PNG) + 8)
    if content.startswith(_JPEG):
      return _jpeg_size(content)
  except (struct.error, IndexError):
    pass
  return None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
  at = 2
  while True:
    # Like decoders, skips any bytes before the next marker.
    at = content.find(b'\xff', at)
    if at < 0:
      return None
    marker = content[at + 1]
    if marker in _FRAMES:
      height, width = struct.unpack_from('>HH', content, at + 5)
      return width, height
    if marker in (0x00, 0xFF):
      at += 1
    elif marker in _BARE:
      at += 2
    else:
      at += 2 + max(2, *struct.unpack_from('>H', content, at + 2))
