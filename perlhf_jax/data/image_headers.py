"""How large an image is, by its first bytes, before it is decoded.

A PNG of some kilobytes can hold billions of pixels.
"""

import struct

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8\xff'
SIGNATURES = (_PNG, _JPEG)

# Three bytes a pixel, of each image that is decoded at a time.
MAX_PIXELS = 100_000_000

# Of JPEG: markers of frames, which hold the size, and those without a length.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset([0x01, *range(0xD0, 0xDA)])


def find_problem(content: bytes) -> str | None:
  """Says why an image is not to be decoded; None if it may be damaged at most.

  Args:
    content: of a file.

  Returns:
    What is wrong, without a subject.
  """
  size = size_of(content)
  if size is None:
    return 'cannot be decoded; it must be a whole PNG or JPEG'
  width, height = size
  if width * height > MAX_PIXELS:
    return f'has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read'
  return None


def size_of(content: bytes) -> tuple[int, int] | None:
  """Returns width and height of an image.

  Args:
    content: of a file.

  Returns:
    Pixels; None of what is no PNG or JPEG, or too damaged to tell.
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
    # Decoders look for the next marker too, whatever stands before it.
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
