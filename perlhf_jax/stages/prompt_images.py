"""Images that Python programs pass together with their strings."""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import errors
from perlhf_jax.data import images as images_lib
from perlhf_jax.stages import line_images


def read(
  loaded: loaded_model.LoadedModel,
  images: Sequence[Any] | np.ndarray | None,
  num_prompts: int,
) -> tuple[list[list[images_lib.Image]], images_lib.ImageSpec | None]:
  """Converts and checks the images given to `text_model`.

  Args:
    loaded: the model, with or without weights.
    images: for each prompt an image, a list of images, or None; None without
      any. An image is the path of a PNG or JPEG file, the content of such a
      file, or a uint8 array `[height, width, 3]`.
    num_prompts: number of prompts.

  Returns:
    The images of each prompt, and how to decode them; None for a model that
    only reads text.

  Raises:
    DataError: the number of images is wrong, one is not an image, or the model
      does not read images.
  """
  if images is None:
    if 'images' in loaded.lengths and num_prompts:
      raise errors.DataError(
        f'{loaded.path} was trained on prompts with images; give images=, with '
        'None for a prompt without.'
      )
    images = [None] * num_prompts
  if len(images) != num_prompts:
    raise errors.DataError(
      f'There are {num_prompts} prompts and images for {len(images)}; give one '
      'image to each prompt, a list of several, or None.'
    )
  found = [
    [_image(each, index) for each in _several(given)]
    for index, given in enumerate(images)
  ]
  spec = line_images.check(loaded, found, lambda index: f'Prompt {index}')
  return found, spec


def _several(given: Any) -> Sequence[Any]:
  if given is None:
    return []
  return given if isinstance(given, list | tuple) else [given]


def _image(given: Any, index: int) -> images_lib.Image:
  if isinstance(given, str | bytes):
    return given
  if isinstance(given, os.PathLike):
    return os.fspath(given)
  if isinstance(given, np.ndarray):
    return images_lib.from_array(given)
  raise errors.DataError(
    f'Prompt {index} has an image that is {type(given).__name__}; give the '
    'path of a PNG or JPEG, its bytes, or an array uint8 [height, width, 3].'
  )
