"""Images of the lines that `score` and `generate` read, and of prompts."""

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
  """Finds the images of lines and makes sure that a model can read them.

  A line's `"image"` is a path, relative to the folder of the file, a list of
  paths, or null for a prompt without.

  Args:
    loaded: the model, with or without weights.
    rows: the lines, in their order from the first on.
    path: their file.

  Returns:
    Paths of the images of each line, and how they are decoded; None for a
    model that reads text alone.

  Raises:
    DataError: a line has no image, too many, one that cannot be decoded, or
      one that the model does not read; the message names file and line.
  """

  def where(index):
    return f'{path}:{index + 1}'

  folder, found = epath.Path(path).parent, []
  for index, row in enumerate(rows):
    if 'images' in loaded.lengths and 'image' not in row:
      raise errors.DataError(
        f'{where(index)} has no "image", and the checkpoint was trained on '
        'prompts with images; give a path, or null for a prompt without.'
      )
    found.append([str(folder / each) for each in _given(row, where(index))])
  return found, check(loaded, found, where)


def check(
  loaded: loaded_model.LoadedModel,
  found: Sequence[Sequence[images.Image]],
  where: Callable[[int], str],
) -> images.ImageSpec | None:
  """Makes sure that a model can read the images of prompts.

  Args:
    loaded: the model, with or without weights.
    found: the images of each prompt.
    where: what messages call the prompt of an index.

  Returns:
    How they are decoded; None for a model that reads text alone.

  Raises:
    DataError: a prompt has too many images, one that cannot be decoded, or one
      that the model does not read.
  """
  config, spec = loaded.config, None
  if config.image_size is not None:
    spec = images.ImageSpec(config.image_size, loaded.lengths.get('images', 1))
  for index, several in enumerate(found):
    if spec is None and several:
      raise errors.DataError(
        f'{where(index)} has an image, and the checkpoint reads text alone; '
        'give a PaLI, or no image.'
      )
    if spec is not None and len(several) > spec.count:
      raise errors.DataError(
        f'{where(index)} has {len(several)} images; the checkpoint reads at '
        f'most {spec.count}.'
      )
  # Each once.
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
  """Returns how many tokens of images stand before those of a prompt."""
  return 0 if spec is None else spec.count * config.vit.num_tokens


def _given(row: Mapping[str, Any], where: str) -> list[str]:
  """What a line says of its images."""
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
