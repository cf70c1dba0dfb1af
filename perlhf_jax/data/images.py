"""Images of examples: stored encoded or as paths, decoded in tf.data.

An image is either `bytes`, an encoded PNG or JPEG that stays in memory, or
`str`, the path of such a file, local or `gs://`, which is read each time it is
needed. Each distinct image is stored once, even if several examples use it.
The model decides the resolution, so that one task serves all models.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import os
import time

from absl import logging
from etils import epy
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.data import image_headers

# Imported when the first image is decoded: the import takes seconds, and
# machines that read no task do not need TensorFlow.
with epy.lazy_imports():
  import tensorflow as tf

Image = bytes | str

# Maximum size of an image file.
MAX_BYTES = 256 * 1024**2
_ABSENT = b''
_PREFETCH = 2
_LOG_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class ImageSpec:
  """The image input of a model.

  Attributes:
    size: pixels per side. Images are resized to squares (bilinear, with
      antialiasing), whatever their proportions, as PaLI does.
    count: maximum number of images per example; absent ones are masked.
  """

  size: int
  count: int = 1


def from_task(value: bytes) -> Image:
  """Converts a task's bytes to an `Image`: encoded bytes, or a path as str."""
  if value.startswith(image_headers.SIGNATURES):
    return value
  try:
    return value.decode('utf-8')
  except UnicodeDecodeError:
    return value  # Neither; decoding will report it.


def from_array(pixels: np.ndarray) -> Image:
  """Encodes pixels losslessly.

  Args:
    pixels: uint8 `[height, width, 3]`, RGB.

  Raises:
    DataError: `pixels` has another shape or dtype.
  """
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
    raise errors.DataError(
      f'An image is an array of {pixels.dtype} {list(pixels.shape)}; give '
      'uint8 [height, width, 3], RGB.'
    )
  return tf.io.encode_png(pixels).numpy()


def describe(image: Image) -> str:
  """Returns the name of an image in messages."""
  if isinstance(image, str):
    return f'the image {image}'
  return f'the image of {len(image)} bytes'


def find_problem(image: Image) -> str | None:
  """Decodes an image, and says why it cannot be used; None if it can."""
  content = image
  if isinstance(image, str):
    # Requesting a size from a bucket takes as long as reading the file.
    most = None if '://' in image else MAX_BYTES
    if problem := plain_files.find_problem(image, most):
      return f'{describe(image)} cannot be read: {problem}'
  try:
    if isinstance(image, str):
      content = tf.io.read_file(image).numpy()
    if problem := image_headers.find_problem(content):
      return f'{describe(image)} {problem}'
    pixels = tf.io.decode_image(content, channels=3, expand_animations=False)
  except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):
    return f'{describe(image)} does not exist'
  except tf.errors.InvalidArgumentError:
    return (
      f'{describe(image)} cannot be decoded; it must be a whole PNG or JPEG'
    )
  except (tf.errors.OpError, UnicodeError) as error:
    return f'{describe(image)} cannot be read ({error})'
  if not min(pixels.shape):
    return f'{describe(image)} has no pixels'
  return None


def find_problems(images: Sequence[Image]) -> dict[Image, str]:
  """Decodes images in parallel, and returns the problems of unusable ones."""
  problems, last = {}, time.monotonic()
  with futures.ThreadPoolExecutor(os.cpu_count()) as executor:
    found = executor.map(find_problem, images, chunksize=64)
    for done, (image, problem) in enumerate(zip(images, found, strict=True)):
      if problem:
        problems[image] = problem
      if time.monotonic() > last + _LOG_SECONDS:
        last = time.monotonic()
        logging.info('Checked %d of %d images.', done + 1, len(images))
  return problems


class ImageColumn:
  """The images of all examples, each distinct image stored once.

  Attributes:
    images: the distinct images.
  """

  def __init__(self, rows: Iterable[Sequence[Image]]):
    numbers: dict[Image, int] = {}
    self._rows = [
      tuple(numbers.setdefault(image, len(numbers)) for image in row)
      for row in rows
    ]
    self.images: list[Image] = list(numbers)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> tuple[Image, ...]:
    return tuple(self.images[number] for number in self.numbers(index))

  def numbers(self, index: int) -> tuple[int, ...]:
    """Returns the indices in `images` of an example's images."""
    return self._rows[index]


def pixel_batches(
  batches: Iterable[Sequence[Sequence[Image]]], spec: ImageSpec
) -> Iterator[dict[str, np.ndarray]]:
  """Decodes the images of batches of examples, ahead of their use.

  Args:
    batches: images of each row of each batch; all batches have the same number
      of rows.
    spec: resolution and number of images.

  Yields:
    `images`, uint8 `[batch, spec.count, size, size, 3]`, RGB, 0 for absent
    images, and `image_mask`, bool `[batch, spec.count]`.

  Raises:
    DataError: an image can no longer be read or decoded.
  """
  batches = iter(batches)
  first = next(batches, None)
  if first is None:
    return
  rows, size = len(first), spec.size
  num_slots = rows * spec.count

  def slots():
    for batch in _chained(first, batches):
      values, is_path = [], []
      for row in batch:
        row = [*row, *[_ABSENT] * (spec.count - len(row))]
        values += [x.encode() if isinstance(x, str) else x for x in row]
        is_path += [isinstance(x, str) for x in row]
      yield values, is_path

  def decode(value, is_path):
    pixels = tf.cond(
      tf.equal(value, _ABSENT),
      lambda: tf.zeros((size, size, 3), tf.uint8),
      lambda: _decode(value, is_path, size),
    )
    return tf.ensure_shape(pixels, (size, size, 3)), tf.not_equal(
      value, _ABSENT
    )

  dataset = (
    tf.data.Dataset.from_generator(
      slots,
      output_signature=(
        tf.TensorSpec((num_slots,), tf.string),
        tf.TensorSpec((num_slots,), tf.bool),
      ),
    )
    .unbatch()
    .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    .batch(num_slots, drop_remainder=True)
    .prefetch(_PREFETCH)
  )
  try:
    for pixels, mask in dataset.as_numpy_iterator():
      yield {
        'images': pixels.reshape(rows, spec.count, size, size, 3),
        'image_mask': mask.reshape(rows, spec.count),
      }
  except tf.errors.OpError as error:
    raise errors.DataError(
      f'An image can no longer be read or decoded: {error.message}. It was'
      ' readable when the data was loaded; leave image files unchanged during'
      ' a run.'
    ) from error


def attach(
  batches: Iterable[Mapping[str, np.ndarray]],
  rows: Iterable[Sequence[Sequence[Image]]],
  spec: ImageSpec | None,
) -> Iterator[Mapping[str, np.ndarray]]:
  """Yields batches with the images of their rows.

  Args:
    batches: batches of text.
    rows: images of each row of each batch; see `pixel_batches`.
    spec: how images are decoded; None leaves batches as they are.
  """
  if spec is None:
    yield from batches
    return
  # `rows` has one entry per batch, or is endless.
  for batch, pixels in zip(batches, pixel_batches(rows, spec), strict=False):
    yield {**batch, **pixels}


def decode(image: Image, size: int) -> np.ndarray:
  """Decodes one image to uint8 `[size, size, 3]`, as `pixel_batches` does."""
  return _decode(tf.constant(image), isinstance(image, str), size).numpy()


def _chained(first, rest):
  yield first
  yield from rest


def _decode(value, is_path, size: int) -> 'tf.Tensor':
  content = tf.cond(is_path, lambda: tf.io.read_file(value), lambda: value)
  pixels = tf.io.decode_image(content, channels=3, expand_animations=False)
  pixels.set_shape((None, None, 3))
  resized = tf.image.resize(pixels, (size, size), antialias=True)
  return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
