"""Writes the images of logged samples beside their records.

A record names them, so that somebody who reads it sees what the model saw.
"""

from collections.abc import Iterable, Mapping
import hashlib
import os
from typing import Any

from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import images

FOLDER = 'sample_images'
# What `images` of a record may hold.
PATTERN = rf'{FOLDER}/[0-9a-f]{{16}}\.png'


def write(
  records: Iterable[Mapping[str, Any]],
  examples: examples_lib.Examples,
  folder: epath.Path,
  num_samples: int = 1,
) -> list[dict[str, Any]]:
  """Adds `images` to records of prompts with images, and writes the files.

  An image is written as the model sees it: a square of its resolution. Only
  process 0 reads and writes images; others need not see their files.

  Args:
    records: records of the first answers to `examples`, in order.
    examples: the examples.
    folder: where the records are written.
    num_samples: answers per example.

  Returns:
    The records, on process 0 with `images`, paths relative to `folder`. Equal
    images have equal names.

  Raises:
    CheckpointError: a file cannot be written.
  """
  if jax.process_index():
    return [dict(each) for each in records]
  result = []
  for number, record in enumerate(records):
    found = examples.images_of(number // num_samples)
    names = [
      _write(each, examples.image_spec.size, folder)
      for each in found
      if examples.image_spec is not None
    ]
    result.append({**record, **({'images': names} if names else {})})
  return result


def _write(image: images.Image, size: int, folder: epath.Path) -> str:
  # The file at a path may be another one at the next evaluation.
  pixels = images.decode(image, size)
  digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
  name = f'{FOLDER}/{digest}.png'
  path = folder / name
  if not path.exists():
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      temporary.write_bytes(images.from_array(pixels))
      temporary.replace(path)
    except OSError as error:
      temporary.unlink(missing_ok=True)
      raise errors.CheckpointError(
        f'Cannot write the image of a sample, {path}: {error}.'
      ) from error
  return name
