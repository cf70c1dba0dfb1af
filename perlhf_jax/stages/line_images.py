"""Images of prompts, and of the lines that `score` and `generate` read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import errors
from perlhf_jax.data import images
from perlhf_jax.models import t5_config


def read(
  loaded: loaded_model.LoadedModel,
  rows: Sequence[Mapping[str, Any]],
  path: str,
) -> tuple[list[list[str]], images.ImageSpec | None]:
  """Finds the images of lines and checks that a model can read them.

  A line's `"image"` is a path relative to the folder of the file, a list of
  such paths, or null for a prompt without image.

  Args:
    loaded: the model, with or without weights.
    rows: all lines of the file, in order.
    path: path of the file.

  Returns:
    The paths of the images of each line, and how to decode them; None for a
    model that only reads text.

  Raises:
    DataError: a line has no image or too many, an image cannot be decoded, or
      the model does not read images; the message names file and line.
  """

  def where(index):
    return f'{path}:{index + 1}'

  folder, found = epath.Path(path).parent, []
  for index, row in enumerate(rows):
    if 'images' in loaded.lengths and 'image' not in row:
      raise errors.DataError(
        f'{where(index)} has no "image", but the checkpoint was trained on '
        'prompts with images; give a path, or null for a prompt without.'
      )
    found.append([str(folder / each) for each in _given(row, where(index))])
  return found, check(loaded, found, where)


def check(
  loaded: loaded_model.LoadedModel,
  found: Sequence[Sequence[images.Image]],
  where: Callable[[int], str],
) -> images.ImageSpec | None:
  """Checks that a model can read the images of prompts.

  Args:
    loaded: the model, with or without weights.
    found: the images of each prompt.
    where: returns the name of the prompt at an index, for messages.

  Returns:
    How to decode the images; None for a model that only reads text.

  Raises:
    DataError: a prompt has too many images, an image cannot be decoded, or the
      model does not read images.
  """
  config, spec = loaded.config, None
  if config.image_size is not None:
    spec = images.ImageSpec(config.image_size, loaded.lengths.get('images', 1))
  for index, several in enumerate(found):
    if spec is None and several:
      raise errors.DataError(
        f'{where(index)} has an image, but the checkpoint reads only text; '
        'give a PaLI, or leave out the image.'
      )
    if spec is not None and len(several) > spec.count:
      raise errors.DataError(
        f'{where(index)} has {len(several)} images; the checkpoint reads at '
        f'most {spec.count}.'
      )
  # Checks each image once.
  distinct = dict.fromkeys(image for row in found for image in row)
  problems = images.find_problems(list(distinct))
  for index, several in enumerate(found):
    for image in several:
      if image in problems:
        raise errors.DataError(f'{where(index)}: {problems[image]}.')
  return spec


def num_tokens(
  config: t5_config.T5Config, spec: images.ImageSpec | None
) -> int:
  """Returns the number of image tokens before the tokens of a prompt."""
  return 0 if spec is None else spec.count * config.vit.num_tokens


def _given(row: Mapping[str, Any], where: str) -> list[str]:
  """Returns the image paths in a line."""
  given = row.get('image')
  if given is None:
    return []
  several = [given] if isinstance(given, str) else given
  if isinstance(several, list) and all(
    isinstance(each, str) and each for each in several
  ):
    return several
  raise errors.DataError(
    f'{where}: "image" is {given!r}; it must be the path of a PNG or JPEG, a '
    'list of such paths, or null.'
  )
